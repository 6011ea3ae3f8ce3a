"""Files of features: rows are kept for the images and settings they were made with, and for nothing else."""

import errno
import json
import os
import pickle
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import without_rights
from forks import in_a_process, kill_this_process, locked_by_another_process
from sppnet.transfer import feature_files
from sppnet.transfer.feature_files import folder_lock, make_features, open_features, read_saved_features

IDENTITY = {
    "rules": 1,
    "network": "0123456789abcdef",
    "view": "full",
    "scale": 224,
    "aligned": False,
    "precision": "float32",
    "layer": "fc7",
}
LENGTH = 5
NAMES = ["a/1.jpg", "a/2.jpg", "b/\n\udcff Ä.jpg", "b/4.jpg"]


def images(names=NAMES, **contents):
    """names and digests; an image's content is its name, or what `contents` says of its index: _1=..."""
    contents = [contents.get(f"_{i}", name) for i, name in enumerate(names)]
    digests = [list(content.encode("utf-8", "surrogatepass").ljust(16, b".")[:16]) for content in contents]
    return np.array(names), np.array(digests, np.uint8)


def rows_of(names):
    """float16 (n, LENGTH): a row that names decide."""
    return np.array([[float(ord(c)) for c in name.ljust(LENGTH)[:LENGTH]] for name in names], np.float16) / 128


def make(folder, names=NAMES, done=None, identity=IDENTITY, length=LENGTH, **contents):
    """Makes features, writes all rows or those at `done`, and returns them."""
    remake(folder, names, identity, length, **contents)
    features = open_features(folder, writable=True)
    indices = list(range(len(names))) if done is None else done
    features.write(indices, rows_of(names)[indices])
    features.mark_done(indices)
    return features


def find(folder, names=NAMES, identity=IDENTITY, **contents):
    """Returns the features in a folder if they are of these images, else None."""
    saved = read_saved_features(folder, identity)
    return saved.features if saved is not None and saved.are_of(*images(names, **contents)) else None


def remake(folder, names=NAMES, identity=IDENTITY, length=LENGTH, **contents):
    """Makes features that take over rows of those in the folder."""
    saved = read_saved_features(folder, identity)
    return make_features(folder, identity, *images(names, **contents), length, saved)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


FILES = ["done.npy", "features.npy", "images.npz", "manifest.json"]


def test_new_features_are_zeros_that_are_not_done(tmp_path):
    features = make_features(tmp_path / "made" / "fc7", IDENTITY, *images(), LENGTH)
    assert features.values.dtype == np.float16
    assert features.values.shape == (4, LENGTH)
    assert features.length == LENGTH
    assert not features.values.any()
    assert features.done.tolist() == 4 * [False]
    assert files(tmp_path / "made" / "fc7") == FILES


def test_the_manifest_says_what_the_features_are_of(tmp_path):
    make(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {**IDENTITY, "dtype": "float16", "images": manifest["images"], "shape": [4, LENGTH]}
    assert len(manifest["images"]) == 64
    make(tmp_path / "other", _1="changed")
    assert json.loads((tmp_path / "other" / "manifest.json").read_text())["images"] != manifest["images"]


def test_written_rows_are_found_again_with_the_marks_that_they_are_done(tmp_path):
    make(tmp_path, done=[0, 2])
    found = find(tmp_path)
    assert found.done.tolist() == [True, False, True, False]
    assert np.array_equal(found.values[[0, 2]], rows_of(NAMES)[[0, 2]])


def test_rows_that_are_written_later_show_in_features_that_were_opened_before(tmp_path):
    before = make_features(tmp_path, IDENTITY, *images(), LENGTH)
    make_again = open_features(tmp_path, writable=True)
    make_again.write([3, 1], rows_of(NAMES)[[3, 1]])
    assert not before.done.any()
    make_again.mark_done([3, 1])
    assert before.done.tolist() == [False, True, False, True]
    assert np.array_equal(before.values[[3, 1]], rows_of(NAMES)[[3, 1]])


def test_features_that_were_found_cannot_be_changed(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        find(tmp_path).values[0] = 0


@pytest.mark.parametrize("indices", [slice(1, 3), np.array([3, 0, 3]), slice(0, 0)])
def test_rows_have_length_1_whatever_float16_made_of_them(tmp_path, indices):
    features = make(tmp_path)
    rows = features.rows(indices)
    expected = torch.from_numpy(rows_of(NAMES)[indices]).double()
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), expected / expected.norm(dim=1, keepdim=True), rtol=1e-6, atol=0)


def test_a_row_of_zeros_stays_zero(tmp_path):
    features = make_features(tmp_path, IDENTITY, *images(), LENGTH)
    assert torch.equal(features.rows(slice(0, 4)), torch.zeros(4, LENGTH))


# Another manifest, other images.


@pytest.mark.parametrize("key", IDENTITY)
def test_every_value_of_the_identity_decides(tmp_path, key):
    make(tmp_path)
    other = IDENTITY | {key: {"aligned": True, "rules": 2, "scale": 392}.get(key, "other")}
    assert find(tmp_path, identity=other) is None
    made = remake(tmp_path, identity=other)
    assert not made.done.any()
    assert not made.values.any()
    assert find(tmp_path) is None
    assert find(tmp_path, identity=other) is not None


@pytest.mark.parametrize("key", [*IDENTITY, "dtype", "images", "shape"])
@pytest.mark.parametrize("change", ["other", "missing"])
def test_a_manifest_that_was_changed_by_hand_counts_for_nothing(tmp_path, key, change):
    make(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    value = manifest.pop(key)
    if change == "other":
        manifest[key] = [4, LENGTH + 1] if key == "shape" else f"{value}0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert find(tmp_path) is None
    assert not remake(tmp_path).done.any()


@pytest.mark.parametrize(
    ("names", "contents", "kept"),
    [
        (NAMES, {"_1": "changed"}, [True, False, True, True]),
        (NAMES[::-1], {}, [True] * 4),
        ([*NAMES[:2], "b/3b.jpg", *NAMES[2:]], {}, [True, True, False, True, True]),
        (NAMES[1:3], {}, [True, True]),
        (["c/new.jpg", NAMES[3]], {}, [False, True]),
        ([NAMES[0], "renamed.jpg"], {"_1": NAMES[1]}, [True, False]),
        # The contents of two images swapped.
        (NAMES[:2], {"_0": NAMES[1], "_1": NAMES[0]}, [False, False]),
        (["a/1.jpg", "a/1.jpg"], {}, [True, True]),
    ],
)
def test_rows_are_kept_for_images_of_the_same_name_and_content(tmp_path, names, contents, kept):
    make(tmp_path)
    assert find(tmp_path, names, **contents) is None
    made = remake(tmp_path, names, **contents)
    assert made.done.tolist() == kept
    assert np.array_equal(made.values, np.where(np.array(kept)[:, None], rows_of(names), 0))
    assert find(tmp_path, names, **contents).done.tolist() == kept
    assert files(tmp_path) == FILES


def test_only_rows_that_are_done_are_kept(tmp_path):
    make(tmp_path, done=[1, 2])
    assert remake(tmp_path, NAMES[1:]).done.tolist() == [True, True, False]


def test_rows_of_another_length_are_not_kept(tmp_path):
    make(tmp_path)
    made = remake(tmp_path, length=1)
    assert made.values.shape == (4, 1)
    assert not made.done.any()


def test_features_that_are_open_stay_what_they_were_when_others_replace_them(tmp_path):
    features = make(tmp_path)
    make(tmp_path, NAMES[::-1], identity=IDENTITY | {"scale": 392})
    assert np.array_equal(features.values, rows_of(NAMES))


def test_features_of_other_settings_are_made_again_without_a_word(tmp_path, capsys):
    make(tmp_path)
    assert find(tmp_path / "nothing") is None
    assert find(tmp_path, identity=IDENTITY | {"scale": 392}) is None
    assert find(tmp_path, NAMES[1:]) is None
    assert capsys.readouterr().out == ""


# Damaged files. None of them runs code, and all are made again after a line that says so.


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


def npy(path, array, **options):
    with path.open("wb") as file:
        np.save(file, array, **options)


def npz(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def cut(path, size=-1):
    path.write_bytes(path.read_bytes()[:size])


def lying_header(path):
    """A .npy file that says it has more rows than it holds."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (4, LENGTH)})
        file.write(bytes(8))


def fewer_rows(folder):
    """Features of fewer images than there are names, and a manifest that says so."""
    npy(folder / "features.npy", rows_of(NAMES)[1:])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"shape": [3, LENGTH]}))


DAMAGES = {
    "features cut": lambda folder, _: cut(folder / "features.npy", -2),
    "features cut in the header": lambda folder, _: cut(folder / "features.npy", 20),
    "features empty": lambda folder, _: cut(folder / "features.npy", 0),
    "features missing": lambda folder, _: (folder / "features.npy").unlink(),
    "features of another shape": lambda folder, _: npy(folder / "features.npy", rows_of(NAMES)[:, 1:]),
    "features of fewer rows": lambda folder, _: npy(folder / "features.npy", rows_of(NAMES)[1:]),
    "features and manifest of fewer rows": lambda folder, _: fewer_rows(folder),
    "features of another type": lambda folder, _: npy(folder / "features.npy", rows_of(NAMES).astype(np.float32)),
    "features of objects": lambda folder, bomb: npy(folder / "features.npy", np.array([[bomb] * LENGTH] * 4)),
    "features pickled": lambda folder, bomb: (folder / "features.npy").write_bytes(pickle.dumps(bomb)),
    "features zipped": lambda folder, _: npz(folder / "features.npy", values=rows_of(NAMES)),
    "features that lie": lambda folder, _: lying_header(folder / "features.npy"),
    "done cut": lambda folder, _: cut(folder / "done.npy"),
    "done missing": lambda folder, _: (folder / "done.npy").unlink(),
    "done of numbers": lambda folder, _: npy(folder / "done.npy", np.ones(4)),
    "done of another shape": lambda folder, _: npy(folder / "done.npy", np.ones((4, 1), bool)),
    "done too long": lambda folder, _: npy(folder / "done.npy", np.ones(5, bool)),
    "images cut": lambda folder, _: cut(folder / "images.npz", -30),
    "images empty": lambda folder, _: cut(folder / "images.npz", 0),
    "images of other names": lambda folder, _: npz(
        folder / "images.npz", names=images(NAMES[::-1])[0], digests=images()[1]
    ),
    "images without digests": lambda folder, _: npz(folder / "images.npz", names=images()[0]),
    "images of objects": lambda folder, bomb: npz(
        folder / "images.npz", names=np.array([bomb] * 4, object), digests=images()[1]
    ),
    "images pickled": lambda folder, bomb: (folder / "images.npz").write_bytes(pickle.dumps(bomb)),
    "images not zipped": lambda folder, _: npy(folder / "images.npz", images()[1]),
    "manifest empty": lambda folder, _: cut(folder / "manifest.json", 0),
    "manifest cut": lambda folder, _: cut(folder / "manifest.json", -9),
    "manifest a list": lambda folder, _: (folder / "manifest.json").write_text("[1, 2]"),
    "manifest a number": lambda folder, _: (folder / "manifest.json").write_text("17"),
    "manifest not text": lambda folder, _: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest too deep": lambda folder, _: (folder / "manifest.json").write_text("[" * 100_000),
    "manifest missing": lambda folder, _: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_made_again_and_run_no_code(tmp_path, capsys, damage):
    folder = tmp_path / "fc7"
    make(folder)
    DAMAGES[damage](folder, Bomb(tmp_path / "ran"))
    capsys.readouterr()
    assert find(folder) is None
    lines = capsys.readouterr().out.splitlines()
    if damage != "manifest missing":  # as after a kill while files were made
        (line,) = lines
        assert line.startswith(f"{folder}: damaged, and made again (")
    made = remake(folder)
    assert not made.done.any()
    assert not made.values.any()
    assert files(folder) == FILES
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_an_error_that_names_it(tmp_path, name):
    make(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert find(tmp_path) is None
    with pytest.raises(OSError, match=name.replace(".", r"\.")) as caught:
        remake(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "fc7").touch()
    with pytest.raises(OSError, match="fc7"), folder_lock(tmp_path / "fc7"):
        pass


def test_links_to_folders_and_files_are_followed(tmp_path):
    make(tmp_path / "disk" / "fc7")
    (tmp_path / "disk" / "fc7" / "features.npy").rename(tmp_path / "elsewhere.npy")
    (tmp_path / "disk" / "fc7" / "features.npy").symlink_to(tmp_path / "elsewhere.npy")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert find(tmp_path / "link" / "fc7").done.all()
    assert remake(tmp_path / "link" / "fc7", NAMES[:2]).done.all()


# Full disks and kills while files are made.


@contextmanager
def largest_file(size):
    """Files cannot grow beyond `size` bytes: a full disk, as far as writers can see."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# 3,000 rows do not fit, and of 1,000 rows the names do not.
@pytest.mark.parametrize(("count", "message"), [(3000, r"30,040 bytes of features.*features\.npy"), (1000, "fc7")])
def test_a_full_disk_is_one_line_and_leaves_the_old_files(tmp_path, count, message):
    make(tmp_path / "fc7")
    before = contents(tmp_path / "fc7")
    with largest_file(20_000), pytest.raises(OSError, match=message) as caught:
        remake(tmp_path / "fc7", [*NAMES, *(f"{i:05}.jpg" for i in range(count))])
    assert caught.value.errno == errno.EFBIG
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "fc7") == before
    assert find(tmp_path / "fc7").done.all()


def test_features_of_which_nothing_is_kept_make_room_first(tmp_path):
    make(tmp_path)
    with largest_file(20_000), pytest.raises(OSError, match="too large"):
        remake(tmp_path, length=10_000)
    assert files(tmp_path) == ["done.npy", "images.npz"]
    assert not remake(tmp_path).done.any()


def killed_at(step, work):
    """Calls `work` in a process that is killed when it flushes, renames or removes a file for the `step`th time."""
    calls = []

    def counted(function):
        def call(*arguments, **options):
            calls.append(function)
            if len(calls) > step:
                kill_this_process()
            return function(*arguments, **options)

        return call

    def in_child():
        os.fsync, os.posix_fallocate = counted(os.fsync), counted(os.posix_fallocate)
        Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
        work()

    return in_a_process(in_child)


def test_a_kill_at_any_moment_never_mixes_old_and_new_rows(tmp_path):
    """And it loses none before the new files are complete."""
    names, outcomes = ["c/new.jpg", *NAMES[:0:-1]], []  # as many as before, so that no length tells them apart
    for step in range(100):
        folder = tmp_path / str(step)
        make(folder)
        if killed_at(step, lambda folder=folder: remake(folder, names)) == 0:
            break
        old, new = find(folder), find(folder, names)
        assert old is None or np.array_equal(old.values, rows_of(NAMES))
        assert new is None or new.done.tolist() == [False] + 3 * [True]

        made = remake(folder, names)
        assert np.array_equal(made.values, np.where(made.done[:, None], rows_of(names), 0))
        assert files(folder) == FILES
        outcomes.append("kept" if made.done.any() else "lost")
    assert 10 < step < 99
    assert outcomes[:3] == 3 * ["kept"]  # killed when space is taken, rows are flushed, the old manifest is removed
    assert outcomes[-1] == "kept"


# Locks.


def test_the_lock_ends_with_its_process(tmp_path):
    def killed():
        with folder_lock(tmp_path):
            kill_this_process()

    assert in_a_process(killed) == -signal.SIGKILL
    started = time.monotonic()
    with folder_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()}"
    assert time.monotonic() - started < 10
    assert (tmp_path / "lock").read_text() == ""


def test_a_lock_that_another_process_holds_is_waited_for(tmp_path, monkeypatch, capsys):
    with locked_by_another_process(tmp_path / "fc7") as (holder, release):
        monkeypatch.setattr(feature_files.time, "sleep", lambda seconds: (release(), os.sched_yield()))
        with folder_lock(tmp_path / "fc7"):
            assert (tmp_path / "fc7" / "lock").read_text() == f"process {os.getpid()}"
    assert capsys.readouterr().out == f"{tmp_path}/fc7: waiting for process {holder}, which extracts into it\n"


def test_a_lock_that_is_held_for_too_long_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "LOCK_TIMEOUT", -1)
    with (
        locked_by_another_process(tmp_path / "fc7"),
        pytest.raises(TimeoutError, match="fc7: another process extracts into it"),
        folder_lock(tmp_path / "fc7"),
    ):
        pass


def test_other_folders_are_not_locked(tmp_path):
    with locked_by_another_process(tmp_path / "fc7"), folder_lock(tmp_path / "fc6"):
        pass


def test_a_full_disk_does_not_keep_features_from_being_read(tmp_path):
    make(tmp_path)
    with largest_file(0), folder_lock(tmp_path):
        assert find(tmp_path).done.all()


def test_features_on_read_only_media_are_read_and_others_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("media/fc7")  # relative, as all the folders above are for root only
    make(folder)
    folder.chmod(0o555)
    tmp_path.chmod(0o755)
    with without_rights(), folder_lock(folder):
        assert find(folder).done.all()
        with pytest.raises(PermissionError, match="fc7"):
            remake(folder, NAMES[:2])
    folder.chmod(0o755)
    assert files(folder) == FILES
