"""Crops and samplers: functions of seed, epoch and index, every image once; unreadable images."""

import collections
import errno
import functools
import operator
import os
import re
import socket

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import jpeg
from sppnet.classify.loading import (
    MAX_REPLACEMENTS,
    BalancedSampler,
    CenterCrops,
    EpochSampler,
    ShareSampler,
    TrainingCrops,
    shorter_side_for,
)
from sppnet.data.images import UnreadableImage
from sppnet.data.sources import open_data


class Files:
    """A data set held in memory, with the interface of `sppnet.data.sources.LabelledImages`."""

    def __init__(self, files):
        self.files, self.labels = files, np.arange(len(files)) % 3

    def __len__(self):
        return len(self.files)

    def read(self, index):
        return self.files[index]

    def name(self, index):
        return f"{index}.jpg"


def noise(count, height=64, width=80, seed=0):
    random = np.random.default_rng(seed)
    return Files([jpeg(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)])


def ramp():
    """One image whose red grows with the column and whose green grows with the row."""
    row, column = np.mgrid[0:64, 0:96]
    return Files([jpeg(np.stack([2 * column, 3 * row, 0 * row], axis=-1).astype(np.uint8))])


def test_the_papers_shorter_side_for_its_crop():
    assert shorter_side_for(224) == 256


def test_a_training_crop_is_a_function_of_seed_epoch_and_index():
    def one(seed, epoch, index):
        item = TrainingCrops(images, side=32, seed=seed)[epoch, index]
        return torch.cat([item["image"].flatten().float(), item["color"], torch.tensor([float(item["mirrored"])])])

    images = noise(4)
    assert torch.equal(one(0, 7, 2), one(0, 7, 2))
    for other in ((1, 7, 2), (0, 8, 2), (0, 7, 3)):
        assert not torch.equal(one(0, 7, 2), one(*other))


def test_training_uses_all_five_positions_mirrors_half_and_draws_colours():
    crops = TrainingCrops(ramp(), side=32, seed=0)
    items = [crops[epoch, 0] for epoch in range(300)]
    corners = {tuple((item["image"][0, 0, :2] / 8).round().int().tolist()) for item in items}
    assert len(corners) == 5
    assert 0.4 < np.mean([item["mirrored"] for item in items]) < 0.6
    colors = torch.stack([item["color"] for item in items])
    assert colors.std(dim=0) == pytest.approx(torch.full((3,), 0.1), abs=0.02)


def test_the_centre_crop_is_the_middle_of_the_image_at_shorter_side_8_7ths():
    image = CenterCrops(ramp(), side=56)[0]["image"]  # 64 x 96 already has the shorter side 64
    assert image.shape == (56, 56, 3)
    assert image[0, 0, 0] == pytest.approx(2 * 20, abs=2)
    assert image[0, 0, 1] == pytest.approx(3 * 4, abs=2)


def test_an_unreadable_training_image_is_named_and_replaced_reproducibly():
    images = noise(5)
    images.files[2] = b"no image"
    crops = TrainingCrops(images, side=32, seed=0)
    item, again = crops[3, 2], crops[3, 2]
    assert "2.jpg" in item["unreadable"]
    assert item["unreadable"] == again["unreadable"]
    assert item["label"] == again["label"]
    assert torch.equal(item["image"], again["image"])
    assert {crops[epoch, 2]["label"] for epoch in range(30)} == {0, 1}  # 0, 1, 3, 4: not 2 itself, not always the next


def unopenable(root, kind):
    """Puts something that looks like an image to `root`/train/cat, and returns its name and why it is none."""
    path = root / "train" / "cat" / "odd.jpg"
    if kind == "pipe":
        os.mkfifo(path)
        reason = "not a regular file"
    elif kind == "device without end":
        path.symlink_to("/dev/zero")
        reason = "not a regular file"
    elif kind == "link to a folder":
        path.symlink_to(root)
        reason = "not a regular file"
    elif kind == "broken link":
        path.symlink_to("nowhere")
        reason = "No such file or directory"
    elif kind == "link to itself":
        path.symlink_to(path)
        reason = "Too many levels of symbolic links"
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            path.parent.joinpath("s").unlink(missing_ok=True)
            before = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                end.bind(path.name)
            finally:
                os.chdir(before)
        reason = os.strerror(errno.ENXIO)
    else:
        path.write_bytes(b"")
        os.truncate(path, 2**40)  # takes no space
        reason = "1099511627776 bytes, more than "
    return "train/cat/odd.jpg", reason


UNOPENABLE = [
    *("pipe", "device without end", "link to a folder", "broken link", "link to itself", "socket", "enormous file"),
]


@pytest.mark.parametrize("kind", UNOPENABLE)
def test_a_file_that_cannot_be_opened_is_named_and_replaced_in_training_and_stops_validation(image_folder, kind):
    name, reason = unopenable(image_folder, kind)
    images = open_data("folder", root=str(image_folder)).train
    index = [images.name(i) for i in range(len(images))].index(name)
    assert TrainingCrops(images, side=32, seed=0)[0, index]["unreadable"].startswith(f"{name}: {reason}")
    with pytest.raises(
        UnreadableImage, match=f"^{re.escape(f'{name}: {reason}')}.*; repair the file, or skip it with .*prepare_data"
    ):
        CenterCrops(images, side=32)[index]


def test_a_data_set_without_readable_images_is_refused():
    crops = TrainingCrops(Files([b"no image"] * 3), side=32, seed=0)
    with pytest.raises(
        UnreadableImage,
        match=f"{MAX_REPLACEMENTS} unreadable images in a row.*jpg.*prepare_data.* reports all of them$",
    ):
        crops[0, 0]


def test_an_unreadable_validation_image_is_an_error_with_its_name():
    images = noise(2)
    images.files[1] = images.files[1][:300]
    with pytest.raises(UnreadableImage, match=r"1\.jpg"):
        CenterCrops(images, side=32)[1]


@pytest.mark.parametrize(("images", "processes"), [(10, 1), (10, 3), (7, 2), (2, 4)])
def test_training_shares_are_equal_disjoint_and_reshuffled_every_epoch(images, processes):
    samplers = [EpochSampler(images, seed=1, rank=rank, processes=processes) for rank in range(processes)]
    seen = [[index for _, index in sampler] for sampler in samplers]
    assert {len(share) for share in seen} == {images // processes}
    flat = functools.reduce(operator.iadd, seen, [])
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(images))
    samplers[0].set_epoch(1)
    assert all(epoch == 1 for epoch, _ in samplers[0])


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert [i for _, i in order(0, 1)] != [i for _, i in order(0, 2)]
    assert [i for _, i in order(0, 1)] != [i for _, i in order(1, 1)]


@pytest.mark.parametrize(("images", "processes"), [(10, 1), (10, 3), (2, 4)])
def test_validation_shares_hold_every_image_exactly_once(images, processes):
    shares = [list(ShareSampler(images, rank=rank, processes=processes)) for rank in range(processes)]
    assert sorted(functools.reduce(operator.iadd, shares, [])) == list(range(images))


def balanced(labels, seed=0, epoch=0, start=0, rank=0, processes=1):
    sampler = BalancedSampler(np.array(labels), seed=seed, rank=rank, processes=processes)
    sampler.set_epoch(epoch)
    sampler.start = start
    return list(sampler)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 3))
def test_a_balanced_epoch_has_as_many_images_of_every_class_and_repeats_evenly(labels, epoch):
    keys = balanced(labels, epoch=epoch)
    present = set(labels)
    of_each = len(labels) // len(present)
    drawn = collections.Counter(labels[index] for _, index, _ in keys)
    assert drawn == dict.fromkeys(present, of_each)
    assert len(keys) == len(BalancedSampler(np.array(labels), seed=0)) == len(present) * of_each
    assert {key[0] for key in keys} == {epoch}

    times = collections.Counter(index for _, index, _ in keys)
    for index, count in times.items():
        size = labels.count(labels[index])
        assert of_each // size <= count <= -(-of_each // size)
        assert sorted(repetition for _, other, repetition in keys if other == index) == list(range(count))
    small = {index for index, label in enumerate(labels) if labels.count(label) <= of_each}
    assert small <= set(times)


def test_a_balanced_epoch_is_a_function_of_seed_and_epoch_and_others_draw_other_images():
    labels = [0] * 40 + [1] * 3
    assert balanced(labels) == balanced(labels)
    epochs = [balanced(labels, epoch=epoch) for epoch in range(8)]
    seen = {index for keys in epochs for _, index, _ in keys if index < 40}
    assert len(seen) > 35  # 21 of 40 in an epoch
    assert sorted(balanced(labels, seed=1)) != sorted(epochs[0])
    spread = [place for place, (_, index, _) in enumerate(epochs[0]) if index >= 40]
    assert min(spread) < 5 < 37 < max(spread)  # in random order


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_balanced_shares_are_equal_disjoint_and_resumed(processes):
    labels = [0] * 11 + [1] * 2 + [3] * 7
    shares = [balanced(labels, rank=rank, processes=processes, epoch=2) for rank in range(processes)]
    assert {len(share) for share in shares} == {18 // processes}
    flat = [key for share in shares for key in share]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(balanced(labels, epoch=2))
    assert balanced(labels, epoch=2, start=4, processes=processes) == shares[0][4:]
