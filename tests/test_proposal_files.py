"""Files of proposals: computed once per image and settings, by several processes, kept through kills and damage."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import PngImages, random_images, started_process
from forks import exit_code, in_a_process, kill_this_process, start_process
from sppnet.data.images import UnreadableImage
from sppnet.data.sources import content_digests
from sppnet.detect import proposal_files
from sppnet.detect.proposal_files import compute_proposals
from sppnet.detect.proposals import Dense
from sppnet.detect.window_files import WindowFile

SMALL = Dense(windows=60)


class Counted:
    """Proposes the windows of SMALL, and writes the name of each image to a file that all processes share."""

    ranked = False

    def __init__(self, log, stop_at=None, stop=None):
        self.log, self.stop_at, self.stop = log, stop_at, stop

    def settings(self):
        return {"proposer": "counted"}

    def __call__(self, image, name="image"):
        with self.log.open("a") as file:
            file.write(f"{name}\n")
        if self.stop_at is not None and len(self.names()) > self.stop_at:
            self.stop()
        return SMALL(image)

    def names(self):
        return self.log.read_text().split() if self.log.exists() else []


def compute(folder, images=None, proposer=SMALL, **options):
    images = random_images() if images is None else images
    return compute_proposals(images, proposer, folder, **({"workers": 0} | options))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows(array):
    return list(map(tuple, array.tolist()))


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_are_those_of_the_proposer(tmp_path, workers):
    images = random_images()
    proposals = compute(tmp_path, images, workers=workers)
    assert len(proposals) == len(images)
    for i, pixels in enumerate(images.pixels):
        windows = proposals.windows(i)
        assert windows.dtype == np.int64
        assert sorted(rows(windows)) == sorted(rows(SMALL(torch.from_numpy(pixels).permute(2, 0, 1))))


def test_settings_lie_beside_the_files_and_name_their_folder(tmp_path):
    compute(tmp_path, random_images([(7, 11)]))
    (folder,) = tmp_path.iterdir()
    settings = json.loads((folder / "settings.json").read_text())
    assert settings == {"rules": 1, **SMALL.settings()}
    assert folder.name.startswith("dense-")
    assert len(files(folder)) == 2
    (file,) = folder.rglob("*.npy")
    assert np.load(file).dtype == np.int16

    compute(tmp_path, random_images([(7, 11)]), Dense(windows=61))
    assert len(list(tmp_path.iterdir())) == 2


def test_windows_of_older_code_are_not_used(tmp_path, monkeypatch):
    proposer = Counted(tmp_path / "log")
    compute(tmp_path / "made", proposer=proposer)
    monkeypatch.setattr(proposal_files, "PROPOSAL_RULES", 2)
    compute(tmp_path / "made", proposer=proposer)
    assert len(proposer.names()) == 12


def test_images_are_proposed_once_and_new_ones_are_added(tmp_path, capfd):
    proposer = Counted(tmp_path / "log")
    compute(tmp_path / "made", random_images(), proposer)
    compute(tmp_path / "made", random_images(), proposer, workers=2)
    assert sorted(proposer.names()) == [f"{i}.png" for i in range(6)]
    assert "resuming" not in capfd.readouterr().out

    more = random_images()
    more.pixels = [*more.pixels, np.zeros((9, 9, 3), np.uint8)]
    compute(tmp_path / "made", more, proposer)
    assert proposer.names()[6:] == ["6.png"]
    assert capfd.readouterr().out == "proposals: resuming after 6 of 7 images\n"


def test_content_and_name_decide_the_file(tmp_path):
    pixels = random_images([(7, 11), (13, 10)]).pixels
    first = compute(tmp_path, PngImages(pixels))
    swapped = compute(tmp_path, PngImages(pixels[::-1]))
    assert len({first.path(0), first.path(1), swapped.path(0), swapped.path(1)}) == 4


def test_digests_that_are_given_are_not_computed_again(tmp_path):
    images = random_images()
    digests = content_digests(images, "")
    images.read = None  # would fail
    with pytest.raises(TypeError):
        compute(tmp_path, images, digests=digests)  # only proposing reads them
    expected = compute(tmp_path)
    images = random_images()
    images.read = None
    given = compute(tmp_path, images, digests=digests)
    assert [given.path(i) for i in range(6)] == [expected.path(i) for i in range(6)]


def test_no_images_have_no_proposals(tmp_path):
    assert len(compute(tmp_path, PngImages([]), workers=2)) == 0


# Too many windows.


def test_windows_are_chosen_by_seed_and_name_and_fewer_are_some_of_them_in_their_order(tmp_path):
    image = random_images([(70, 93)]).pixels[0]
    images = PngImages([image, image])
    every, some, few = (compute(tmp_path, images, most=most) for most in (10**6, 20, 5))
    assert len(every.windows(0)) > 20
    assert [len(one.windows(0)) for one in (some, few)] == [20, 5]
    for fewer, more in ((few, some), (some, every)):
        assert rows(fewer.windows(0)) == [row for row in rows(more.windows(0)) if row in rows(fewer.windows(0))]
    assert rows(some.windows(0)) != rows(some.windows(1))
    assert rows(every.windows(0)) == rows(every.windows(1))

    other = compute(tmp_path, images, most=20, seed=1)
    assert rows(other.windows(0)) != rows(some.windows(0))
    assert rows(compute(tmp_path, images, most=20).windows(0)) == rows(some.windows(0))
    assert len(files(tmp_path)) == 3


def test_windows_are_chosen_evenly(tmp_path):
    images = PngImages([np.zeros((64, 64, 3), np.uint8)] * 60)
    proposals = compute(tmp_path, images, Dense(windows=10, ratio=2), most=1)
    assert len({rows(proposals.windows(i))[0] for i in range(60)}) == len(
        compute(tmp_path, images, Dense(windows=10, ratio=2)).windows(0)
    )


def test_the_choice_stays_the_same_in_later_versions(tmp_path):
    """So that a run that resumes, and a result that is repeated, have the windows that they had."""
    proposals = compute(
        tmp_path, PngImages([np.zeros((64, 64, 3), np.uint8)]), Dense(windows=10, ratio=2), most=2, seed=7
    )
    assert rows(proposals.windows(0)) == [(32, 0, 64, 64), (24, 0, 40, 64)]


def test_ranked_windows_are_cut_behind_the_best(tmp_path):
    boxes = [[i, 0, i + 3, 9] for i in (5, 3, 9, 1)]
    path = tmp_path / "windows.jsonl"
    path.write_text("".join(f"{json.dumps({'image': f'{i}.png', 'boxes': boxes})}\n" for i in range(6)))
    proposals = compute(tmp_path / "made", proposer=WindowFile(path=str(path)), most=3)
    assert proposals.windows(2).tolist() == boxes[:3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"most": 0}, "most=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"workers": -1}, "workers=-1: must be at least 0"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        compute(tmp_path, **options)
    assert not files(tmp_path)


# Damage, kills, and others.


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "of another type": lambda path: np.save(path, np.load(path).astype(np.int32)),
    "of another shape": lambda path: np.save(path, np.load(path)[:, :3]),
    "flat": lambda path: np.save(path, np.load(path).reshape(-1)),
    "without windows": lambda path: np.save(path, np.load(path)[:0]),
    "negative": lambda path: np.save(path, np.load(path) - np.int16(1)),
    "inside out": lambda path: np.save(path, np.load(path)[:, ::-1]),
    "pickled": lambda path: np.save(path, np.array([None]), allow_pickle=True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again_with_one_line(tmp_path, damage, capfd):
    proposals = compute(tmp_path)
    expected = proposals.windows(3)
    DAMAGES[damage](proposals.path(3))
    with pytest.raises(ValueError, match=r"\.npy: damaged, expected windows, int16 \(K, 4\)$"):
        proposals.windows(3)

    capfd.readouterr()
    assert np.array_equal(compute(tmp_path).windows(3), expected)
    line, resuming = capfd.readouterr().out.splitlines()
    assert line == f"{proposals.path(3)}: damaged, expected windows, int16 (K, 4); computing it again"
    assert resuming == "proposals: resuming after 5 of 6 images"


class OneName(PngImages):
    def name(self, index):
        return "same.png"


def test_images_of_the_same_name_and_content_share_a_file(tmp_path, capfd):
    images, proposer = OneName([np.zeros((7, 11, 3), np.uint8)] * 3), Counted(tmp_path / "log")
    proposals = compute(tmp_path / "made", images, proposer)
    proposals.path(0).write_bytes(b"")
    compute(tmp_path / "made", images, proposer)
    assert len(proposer.names()) == 2
    assert capfd.readouterr().out.count("computing it again") == 1


def test_a_removed_file_is_named(tmp_path):
    proposals = compute(tmp_path)
    proposals.path(3).unlink()
    with pytest.raises(FileNotFoundError, match=proposals.path(3).name):
        proposals.windows(3)


def test_a_kill_loses_only_the_image_under_way(tmp_path, capfd):
    proposer = Counted(tmp_path / "log", 3, kill_this_process)
    assert in_a_process(lambda: compute(tmp_path / "made", proposer=proposer)) == -signal.SIGKILL
    resumed = Counted(tmp_path / "log")
    proposals = compute(tmp_path / "made", proposer=resumed)
    assert resumed.names() == [f"{i}.png" for i in (0, 1, 2, 3, 3, 4, 5)]
    assert capfd.readouterr().out.endswith("proposals: resuming after 3 of 6 images\n")
    assert len(proposals.windows(5))


def test_a_kill_while_a_file_is_written_leaves_no_half_of_it(tmp_path, monkeypatch):
    def kill(descriptor):
        kill_this_process()

    def killed():
        monkeypatch.setattr(os, "fsync", kill)
        compute(tmp_path)

    compute(tmp_path, random_images([(7, 11)]))
    assert in_a_process(killed) == -signal.SIGKILL
    assert any(".partial" in name for name in files(tmp_path))
    proposals = compute(tmp_path)
    assert all(len(proposals.windows(i)) for i in range(6))


class InterruptOnce(Counted):
    def __call__(self, image, name="image"):
        windows = super().__call__(image, name)
        if len(self.names()) == 3:
            raise KeyboardInterrupt
        return windows


def test_after_ctrl_c_it_resumes(tmp_path):
    proposer = InterruptOnce(tmp_path / "log")
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "made", proposer=proposer)
    compute(tmp_path / "made", proposer=proposer)
    assert proposer.names() == [f"{i}.png" for i in (0, 1, 2, 2, 3, 4, 5)]
    assert not [name for name in files(tmp_path / "made") if ".partial" in name]


ENDLESS = """
import os, sys, time
from pathlib import Path
from test_proposal_files import Counted, compute

class Slow(Counted):
    def __call__(self, image, name="image"):
        windows = super().__call__(image, name)
        os.write(1, f"{name}\\n".encode())  # at once, or the lines of two processes mix
        time.sleep(3600)
        return windows

compute(Path(sys.argv[1]) / "made", proposer=Slow(Path(sys.argv[1]) / "log"), workers=2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_started_it(tmp_path, number):
    """Reading the output returns once the last process that could write to it has ended."""
    command = [sys.executable, "-c", ENDLESS, tmp_path]
    with started_process(command, limit=120, cwd=Path(__file__).parent, stdout=-1, stderr=-3) as process:
        assert sorted(process.stdout.readline() for _ in range(2)) == ["0.png\n", "1.png\n"]
        os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
        process.stdout.read()
    assert process.returncode in (-number, 1, 130)


def test_two_commands_at_once_make_the_same_files(tmp_path):
    images = random_images([(20 + i, 30) for i in range(20)])
    first, second = (start_process(lambda: compute(tmp_path, images)) for _ in range(2))
    assert [exit_code(first), exit_code(second)] == [0, 0]
    alone = compute(tmp_path / "alone", images)
    both = compute(tmp_path, images)
    assert all(np.array_equal(both.windows(i), alone.windows(i)) for i in range(20))


def test_an_image_that_another_command_has_done_meanwhile_is_left_out(tmp_path):
    def other():
        compute(tmp_path / "made", proposer=Counted(tmp_path / "other"))

    proposer = Counted(tmp_path / "log", 0, other)
    compute(tmp_path / "made", proposer=proposer)
    assert proposer.names() == ["0.png"]
    assert len(Counted(tmp_path / "other").names()) == 6


# Images that cannot be proposed for.


class WithBroken(PngImages):
    def read(self, index):
        return b"no image" if index == 2 else super().read(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_with_how_to_skip_it(tmp_path, workers):
    images = WithBroken(random_images().pixels)
    with pytest.raises(UnreadableImage, match=r"2\.png: not an image .* skip it with exclude=\[2\.png\]"):
        compute(tmp_path, images, workers=workers)
    assert not [name for name in files(tmp_path) if ".partial" in name]


def test_what_the_proposer_refuses_is_named(tmp_path):
    (tmp_path / "windows.jsonl").write_text('{"image": "0.png", "boxes": []}\n')
    with pytest.raises(ValueError, match=r"windows\.jsonl: found no line for the image 1\.png"):
        compute(tmp_path / "made", proposer=WindowFile(path=str(tmp_path / "windows.jsonl")))


def test_a_killed_process_is_explained_in_one_line(tmp_path):
    proposer = Counted(tmp_path / "log", 2, kill_this_process)
    with pytest.raises(OSError, match=r"^a loader process was killed \(signal 9\), .*; use fewer hardware\.workers$"):
        compute(tmp_path / "made", proposer=proposer, workers=1)


def test_a_file_in_place_of_the_folder_is_named_in_one_line(tmp_path):
    (tmp_path / "made").write_text("a file in place of the folder")
    with pytest.raises(OSError, match="made") as caught:
        compute(tmp_path / "made")
    assert "\n" not in str(caught.value)
