"""The data module: batches on the device, resumed inside an epoch, in constant memory; unreadable images."""

import gc
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_image_folder
from sppnet.classify.datamodule import ClassificationData, allowed_unreadable, larger_share
from sppnet.data.image_files import ImageFiles
from sppnet.data.sources import ImageData, open_data
from test_augmentation import CHOICES, augmentation
from test_loading import Files, noise


def data_module(images, workers=0, **options):
    defaults = {
        "batch_size": 4,
        "crop_side": 32,
        "size_of_step": lambda epoch, step: (32, 24)[epoch % 2],
        "color": True,
    }
    scale = {"input_mean": (100.0, 110.0, 120.0), "input_std": (1.0, 1.0, 1.0)}
    data = ImageData(images, images, ("a", "b", "c"))
    return ClassificationData(data, seed=5, workers=workers, **(defaults | scale | options))


def test_a_name_with_any_characters_counts_once_and_is_shown_escaped(image_folder):
    names = ["tab\there.jpg", "line\nbreak.jpg", "clear\x1b[2J.jpg", os.fsdecode(b"latin\xe9.jpg")]
    for name in names:
        (image_folder / "train" / "cat" / name).write_bytes(b"")
    data = data_module(open_data("folder", root=str(image_folder)).train, crop_side=8, batch_size=16)
    batches = list(data.train_dataloader())
    with pytest.warns(UserWarning, match="skipping an unreadable training image") as warned:
        data._warn_of_unreadable([message for batch in batches for message in batch["unreadable"]])
    shown = [r"tab\there", r"line\nbreak", r"clear\x1b[2J", r"latin\xe9"]
    expected = {f"train/cat/{name}.jpg: the file is empty" for name in shown}
    assert data.unreadable == expected
    assert {
        str(warning.message).removeprefix("skipping an unreadable training image: ") for warning in warned
    } == expected


@pytest.mark.parametrize("augmented", [False, True])
def test_batches_are_the_same_for_any_number_of_workers(augmented):
    images = noise(8)
    options = {"augmentation": augmentation(**CHOICES["all"]), "balanced": True} if augmented else {}
    batches = [list(data_module(images, workers=workers, **options).train_dataloader()) for workers in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert one.keys() == two.keys()
        for key in ("image", "label", "mirrored", "color"):
            assert torch.equal(one[key], two[key])


def test_more_unreadable_images_than_allowed_stop_training():
    files = Files([*noise(8).files, b"no image", b"neither"])
    data = data_module(files, max_unreadable=0.1)
    data._warn_of_unreadable([])
    with pytest.warns(UserWarning, match="8.jpg"):
        data._warn_of_unreadable(["8.jpg: bad", ""])
    data._warn_of_unreadable(["8.jpg: bad"])  # once is enough
    with (
        pytest.warns(UserWarning, match="9.jpg"),
        pytest.raises(
            ValueError,
            match=r"2 of 10 .* more than allowed \(1\); .*max_unreadable=0\.3 allows 3$",
        ),
    ):
        data._warn_of_unreadable(["9.jpg: bad"])
    assert data.unreadable == {"8.jpg: bad", "9.jpg: bad"}


def test_a_few_unreadable_images_of_a_small_set_do_not_stop_training():
    allowed = {0: 0, 9: 0, 10: 1, 33: 3, 50: 5, 499: 5, 599: 5, 600: 6, 1_281_167: 12_811}
    assert {images: allowed_unreadable(None, images) for images in allowed} == allowed
    assert [allowed_unreadable(share, 33) for share in (0, 0.01, 0.1, 1)] == [0, 0, 3, 33]
    data = data_module(noise(19), max_unreadable=None)
    with pytest.warns(UserWarning, match="0.jpg"):
        data._warn_of_unreadable(["0.jpg: bad"])
    with (
        pytest.warns(UserWarning, match="1.jpg"),
        pytest.raises(ValueError, match=r"2 of 19 .* more than allowed \(1\); .*max_unreadable=0\.2 allows 3$"),
    ):
        data._warn_of_unreadable(["1.jpg: bad"])


@given(st.integers(1, 10**7), st.data())
def test_a_larger_share_has_room_for_more_unreadable_images(images, data):
    unreadable = data.draw(st.integers(1, images))
    share = larger_share(unreadable, images)
    assert allowed_unreadable(share, images) >= min(images, math.floor(1.5 * unreadable))
    assert share <= 1
    assert len(f"{share:.0e}".split("e")[0]) == 1
    assert float(f"{share:.0e}") == share


def test_an_epoch_resumes_after_the_batches_of_its_checkpoint():
    def batches(loader, epoch):
        loader.sampler.set_epoch(epoch)
        return [batch["label"].tolist() for batch in loader]

    images = noise(11)
    uninterrupted = data_module(images).train_dataloader()
    epochs = [batches(uninterrupted, epoch) for epoch in range(3)]
    assert uninterrupted.state_dict() == {"batches": 0}  # at the end of an epoch the next one begins
    stopped = data_module(images).train_dataloader()
    stopped.sampler.set_epoch(1)
    begun = iter(stopped)
    assert next(begun)["label"].tolist() == epochs[1][0]
    assert stopped.state_dict() == {"batches": 1}
    resumed = data_module(images, workers=1).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    assert len(resumed) == 2
    assert batches(resumed, 1) == epochs[1][1:]
    assert batches(resumed, 2) == epochs[2]


def test_an_epoch_smaller_than_a_batch_is_one_batch():
    assert [len(batch["label"]) for batch in data_module(noise(3)).train_dataloader()] == [3]
    assert [len(batch["label"]) for batch in data_module(noise(9)).train_dataloader()] == [4, 4]
    assert [len(batch["label"]) for batch in data_module(noise(9)).val_dataloader()] == [4, 4, 1]


def private_megabytes(process):
    """Returns the memory that only this process holds: pages it wrote to, its own or copied from its parent."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


class AsList:
    """The same images as Python objects, which workers copy page by page."""

    def __init__(self, images):
        self.root, self.labels = images.root, images.labels.tolist()
        self.entries = list(zip(images.paths.tolist(), self.labels, strict=True))

    def __len__(self):
        return len(self.entries)

    def read(self, index):
        return Path(self.root, self.name(index)).read_bytes()

    def name(self, index):
        return os.fsdecode(self.entries[index][0])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's accounts of memory")
def test_a_million_images_take_no_memory_in_workers_and_none_more_from_epoch_to_epoch(tmp_path):
    few = open_data("folder", root=str(make_image_folder(tmp_path, train=8))).train
    repeated = np.arange(1_281_167) % len(few)
    many = ImageFiles(few.root, few.paths[repeated], few.labels[repeated], few.classes)

    def growth(images):
        """MB that a worker gains over two epochs of 2,000 images, after a first one."""
        loader = data_module(images, crop_side=8, batch_size=200, workers=1).train_dataloader()
        held = []
        # A collection in the worker would copy, once, all that the tests before this one left in this process.
        gc.freeze()
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)
            for _, batch in zip(range(10), loader, strict=False):
                assert batch["image"].shape == (200, 8, 8, 3)
            (worker,) = multiprocessing.active_children()
            held.append(private_megabytes(worker.pid))
        return held[2] - held[0]

    assert growth(many) < 6 < 18 < growth(AsList(many))
