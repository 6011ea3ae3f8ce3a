"""Scores files: written and read back; damaged and malicious ones are refused."""

import json
import zipfile

import numpy as np
import pytest

from sppnet.results.scores import Scores, check_single_label, read_about, read_scores, write_scores

SCORES = Scores(np.full((3, 2), 0.5, np.float32), np.array([0, 1, 0]), np.array(["a", "b", "c"]), {"views": "center"})


def test_scores_come_back_as_they_were_written(tmp_path):
    write_scores(tmp_path / "center.npz", SCORES)
    assert [path.name for path in tmp_path.iterdir()] == ["center.npz"]
    scores = read_scores(tmp_path / "center.npz")
    assert np.array_equal(scores.scores, SCORES.scores)
    assert scores.labels.tolist() == [0, 1, 0]
    assert scores.names.tolist() == ["a", "b", "c"]
    assert scores.about == SCORES.about


def test_scores_of_one_image_are_read_and_of_none_refused(tmp_path):
    for n in (1, 0):
        first = Scores(SCORES.scores[:n], SCORES.labels[:n], SCORES.names[:n], SCORES.about)
        write_scores(tmp_path / f"{n}.npz", first)
    assert read_scores(tmp_path / "1.npz").labels.tolist() == [0]
    with pytest.raises(ValueError, match=r"0\.npz: not a scores file \(0 scores, 0 labels and 0 names"):
        read_scores(tmp_path / "0.npz")


def test_a_label_for_every_class_comes_back_as_it_was_written(tmp_path):
    labels = np.array([[1, 0], [-1, 1], [0, 0]], np.int8)
    write_scores(tmp_path / "fc7-split0.npz", Scores(SCORES.scores, labels, SCORES.names, SCORES.about))
    scores = read_scores(tmp_path / "fc7-split0.npz")
    assert scores.labels.dtype == np.int8
    assert np.array_equal(scores.labels, labels)
    check_single_label(SCORES, "center.npz")
    with pytest.raises(ValueError, match=r"center\.npz: a label for every class.*must be one label per image"):
        check_single_label(scores, "center.npz")


def test_what_is_said_about_scores_is_read_without_them(tmp_path):
    write_scores(tmp_path / "center.npz", SCORES)
    assert read_about(tmp_path / "center.npz") == SCORES.about
    archive(tmp_path / "alone.npz", {"about": MEMBERS["about"]})
    assert read_about(tmp_path / "alone.npz") == {"views": "center"}


@pytest.mark.parametrize("read", [read_about, read_scores])
@pytest.mark.parametrize("about", ["[]", "no json", "[" * 100_000])
def test_the_command_that_makes_a_damaged_file_again_is_named(tmp_path, read, about):
    archive(tmp_path / "file.npz", MEMBERS | {"about": npy(np.array(about))})
    with pytest.raises(ValueError, match=r"file\.npz: not a scores file \(.*delete it and run .*transfer.* again$"):
        read(tmp_path / "file.npz", "transfer")


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def npy(array, shape=None):
    """Returns the bytes of an .npy file; `shape` is the one its header claims."""
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape or array.shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + array.tobytes()


MEMBERS = {
    "scores": npy(SCORES.scores),
    "labels": npy(SCORES.labels),
    "names": npy(SCORES.names),
    "about": npy(np.array(json.dumps({"views": "center"}))),
}


def test_a_compressed_archive_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "center.npz"
    archive(path, MEMBERS)
    read_scores(path)
    archive(path, MEMBERS | {"scores": npy(np.zeros((5000, 1000), np.float32))}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"center\.npz: not a scores file \(scores unfolds to 20,000,\d+ bytes, more"):
        read_scores(path)


@pytest.mark.parametrize("shape", [(2**40, 2), (2**62, 2**62), (10_000, 2)])
def test_an_array_whose_header_claims_more_than_the_file_holds_is_refused(tmp_path, shape):
    path = tmp_path / "center.npz"
    archive(path, MEMBERS | {"scores": npy(SCORES.scores, shape)})
    with pytest.raises(ValueError, match=r"center\.npz: not a scores file \(scores says \(.*more than the file holds"):
        read_scores(path)


def test_metadata_that_nests_too_deep_is_refused(tmp_path):
    archive(tmp_path / "center.npz", MEMBERS | {"about": npy(np.array("[" * 100_000))})
    with pytest.raises(ValueError, match=r"center\.npz: not a scores file"):
        read_scores(tmp_path / "center.npz")


# Two images of three classes.
EXAMPLE = {
    "scores": np.array([[0.5, 0.5, 0], [0, 1, 0]], np.float32),
    "labels": np.array([0, 2]),
    "names": np.array(["a.jpg", "b.jpg"]),
    "about": json.dumps({}),
}


@pytest.mark.parametrize(
    "fields",
    [
        EXAMPLE | {"scores": np.array([[np.nan, 1, 0], [0, 1, 0]], np.float32)},
        EXAMPLE | {"scores": np.zeros((2, 3), np.int64)},
        EXAMPLE | {"scores": np.zeros(2, np.float32)},
        EXAMPLE | {"labels": np.array([0, 3])},
        EXAMPLE | {"labels": np.array([0])},
        EXAMPLE | {"labels": np.array([[0, 1, 0], [0, -1, 2]], np.int8)},
        EXAMPLE | {"labels": np.array([[0, 1, 0], [0, -2, 1]], np.int8)},
        EXAMPLE | {"labels": np.array([[0, 1, 0], [0, -128, 1]], np.int8)},
        EXAMPLE | {"labels": np.array([[0, 1], [0, -1]], np.int8)},
        EXAMPLE | {"labels": np.array([[0], [2]], np.int8)},
        EXAMPLE | {"labels": np.array([[0, 1, 0], [0, -1, 1]])},
        EXAMPLE | {"labels": np.zeros((2, 3, 1), np.int8)},
        EXAMPLE | {"labels": np.array([-1, 0])},
        EXAMPLE | {"names": np.array(["a", "b"], object)},
        EXAMPLE | {"about": "no json"},
        EXAMPLE | {"about": "[]"},
        {"scores": EXAMPLE["scores"]},
    ],
)
def test_a_damaged_scores_file_is_refused_in_one_line(tmp_path, fields):
    np.savez(tmp_path / "file.npz", **fields)
    with pytest.raises(
        ValueError, match=r"file\.npz: not a scores file \(.*delete it and run .*evaluate.* again$"
    ) as error:
        read_scores(tmp_path / "file.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_any_other_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "file.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.npz: not a scores file"):
        read_scores(tmp_path / "file.npz")
