"""Which decoded images a training keeps, and that it trains on the same pixels with them as without."""

import math
import os
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from conftest import PngImages, make_image_folder, random_images
from sppnet.classify import caching
from sppnet.classify.caching import NO_CACHING, Caching, plan_caching
from sppnet.classify.machine import Machine
from sppnet.classify.training import caching_of
from sppnet.data.images import encode_pixels
from sppnet.data.pixels import bytes_on_disk
from sppnet.data.sources import ImageData
from sppnet.network import load_network
from test_augmentation import CHOICES, augmentation
from test_datamodule import data_module
from test_loading import Files, noise
from test_plan import make_plan
from test_training import train


class CountedReads(Files):
    """Images that count how often each is read."""

    def __init__(self, images):
        super().__init__(images.files)
        self.reads = Counter()

    def read(self, index):
        self.reads[index] += 1
        return super().read(index)


def epochs(images, count=3, **options):
    """All batches of so many epochs of training and of validation."""
    data = data_module(images, **options)
    training, validation = data.train_dataloader(), data.val_dataloader()
    batches = []
    for epoch in range(count):
        training.sampler.set_epoch(epoch)
        batches += [*training, *validation]
    return batches


KEPT = Caching(10**8, 10**8, 10**6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("choice", [None, "rand_augment", "all"])
def test_batches_are_the_same_with_images_that_are_kept(workers, choice):
    options = {"augmentation": None if choice is None else augmentation(**CHOICES[choice])}
    plain, kept = (epochs(noise(11), workers=workers, caching=c, **options) for c in (NO_CACHING, KEPT))
    assert len(plain) == len(kept) == 3 * (2 + 3)
    for one, two in zip(plain, kept, strict=True):
        for key in one:
            assert torch.equal(one[key], two[key]) if isinstance(one[key], torch.Tensor) else one[key] == two[key]


@pytest.mark.parametrize("limits", [KEPT, Caching(10**8, 0, 1), Caching(0, 10**8, 1), NO_CACHING])
def test_every_image_is_read_once_and_again_where_none_are_kept(limits):
    images = CountedReads(noise(8))
    epochs(images, count=5, caching=limits)
    reads = (1 if limits.training else 5) + (1 if limits.validation else 5)
    assert set(images.reads.values()) == {reads}


def test_an_unreadable_image_is_named_and_replaced_in_every_epoch_with_images_that_are_kept():
    plain, kept = noise(9), noise(9)
    plain.files[4] = kept.files[4] = b"no image"
    sides = [data_module(images, caching=limits) for images, limits in ((plain, NO_CACHING), (kept, KEPT))]
    loaders = [side.train_dataloader() for side in sides]
    for epoch in range(4):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for one, two in zip(*loaders, strict=True):
            assert torch.equal(one["image"], two["image"])
            assert one["unreadable"] == two["unreadable"]


def test_a_training_with_images_that_are_kept_ends_with_the_same_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(caching, "_WORTH_A_LINE", 1)
    folder = make_image_folder(tmp_path / "images", train=4, val=2)
    weights = []
    for cache in (0, "auto", 1e-4):
        run = tmp_path / f"run{cache}"
        train(folder, run, {"cycle": [64, 48]}, epochs=3, cache=cache)
        weights.append(load_network(run).state_dict())
        assert ("decoded images are kept in a temporary file" in capsys.readouterr().out) == (cache != 0)
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


def test_a_single_epoch_keeps_no_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(caching, "_WORTH_A_LINE", 1)
    folder = make_image_folder(tmp_path / "images", train=4, val=2)
    train(folder, tmp_path / "run", {"cycle": [64]}, epochs=1, cache="auto")
    assert "decoded images" not in capsys.readouterr().out


def test_after_a_training_no_disk_is_taken(tmp_path, monkeypatch):
    made = []
    make = Caching.caches
    monkeypatch.setattr(Caching, "caches", lambda limits, data: made.extend(make(limits, data)) or tuple(made[-2:]))
    train(make_image_folder(tmp_path / "images", train=4, val=2), tmp_path / "run", {"cycle": [64]}, cache="auto")
    assert len(made) == 2
    for cache in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(cache._file)


# What is decided.


def data(train=None, val=None):
    """Images of six shapes to train on and three squares of 64 pixels to validate, unless others are given."""
    return ImageData(train or random_images(), val or random_images([(64, 64)] * 3), ("a", "b", "c"))


@pytest.fixture
def machine(monkeypatch):
    """Sets the memory and the free disk in bytes."""

    def set_sizes(memory, free):
        monkeypatch.setattr(caching, "memory_bytes", lambda: memory)
        monkeypatch.setattr(caching.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))

    return set_sizes


# Crops of 56 of images at shorter side 64: (64, 85), (85, 64), (64, 256), (256, 64), (64, 64), (64, 91).
TRAINING = sum(bytes_on_disk(64 * side) for side in (85, 85, 256, 256, 64, 91))
VALIDATION = 3 * bytes_on_disk(56 * 56)


def plan(setting="auto", images=None, side=56, random_crop=False, processes=1):
    return plan_caching(setting, images or data(), side=side, random_crop=random_crop, processes=processes)


def test_the_expected_size_is_that_of_all_images_as_they_are_kept(machine):
    machine(10**12, 10**12)
    assert plan().expected == pytest.approx(TRAINING + VALIDATION, rel=0.05)
    whole = sum(3 * height * width for height, width in ((70, 93), (93, 70), (40, 160), (160, 40), (64, 64), (33, 47)))
    assert plan(random_crop=True).expected == pytest.approx(whole + VALIDATION, rel=0.3)  # of whole blocks
    assert plan(random_crop=True).expected > plan(random_crop=True, side=40).expected


def test_a_long_image_counts_as_it_is_kept_cut_to_16_to_1(machine):
    machine(10**12, 10**12)
    long = plan(images=data(random_images([(3, 999)])), side=7)
    assert long.expected - 3 * bytes_on_disk(49) == bytes_on_disk(8 * 128)


def test_automatically_all_images_are_kept_or_none(machine):
    expected = plan(1).expected
    for memory, free in ((4 * expected + 4, 10**12), (10**12, 4 * expected + 4)):
        machine(memory, free)
        kept = plan()
        assert kept.expected == expected
        assert kept.training + kept.validation >= expected
        machine(min(memory, 4 * expected - 4), min(free, 4 * expected - 4))
        assert plan() == NO_CACHING
    machine(8 * expected + 8, 10**12)
    assert plan(processes=2).expected == expected  # each keeps all images
    assert plan(processes=3) == NO_CACHING


def test_of_a_large_set_no_file_is_read(machine):
    class Unread(PngImages):
        def read(self, index):
            raise AssertionError("read")

    machine(10**6, 10**6)
    many = Unread([None] * 100_000)
    assert plan(images=data(many, many)) == NO_CACHING


def test_a_number_of_gigabytes_is_the_limit_of_both_parts_and_of_all_processes(machine):
    machine(1, 1)  # does not matter
    for gigabytes, processes in ((1, 1), (0.00004, 1), (0.00008, 2), (0.00001, 1)):
        kept = plan(gigabytes, processes=processes)
        assert min(kept.training, kept.validation) >= 0
        assert kept.training + kept.validation == math.floor(gigabytes * 1e9) // processes
        assert kept.expected <= kept.training + kept.validation
    assert plan(0) == NO_CACHING


def test_the_processes_of_a_run_share_the_limit_of_its_plan():
    base = make_plan()
    planned = replace(base, recipe=replace(base.recipe, epochs=2), machine=Machine(cache=1))
    assert caching_of(planned, data(), 1) == plan(1, side=base.crop_side)
    assert caching_of(planned, data(), 2) == plan(1, side=base.crop_side, processes=2)
    cropped = replace(planned, recipe=replace(planned.recipe, crop_area=[0.1, 1.0]))
    assert caching_of(cropped, data(), 2) == plan(1, side=base.crop_side, random_crop=True, processes=2)


def test_no_images_are_kept_that_loader_processes_would_not_share(monkeypatch):
    """As on macOS."""
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: "spawn")
    for workers in (0, 1, None):
        base = make_plan()
        planned = replace(base, recipe=replace(base.recipe, epochs=2), machine=Machine(cache=1, workers=workers))
        assert (caching_of(planned, data(), 1) == NO_CACHING) == (workers != 0)


def test_training_images_of_a_store_of_pixels_are_not_kept_again(machine):
    machine(10**12, 10**12)

    class Stored(PngImages):
        def read(self, index):
            return encode_pixels(torch.from_numpy(self.pixels[index]).permute(2, 0, 1))

    kept = plan(images=data(Stored(random_images().pixels)))
    assert kept == Caching(0, VALIDATION, VALIDATION)


def test_an_unreadable_first_image_is_no_reason_to_keep_none(machine):
    machine(10**12, 10**12)
    images = noise(3)
    images.files[0] = b"no image"
    assert plan(images=data(images)).training > 0


def test_the_note_says_how_much_and_how_to_turn_it_off():
    assert NO_CACHING.note() is None
    assert Caching(1, 1, 99_999_999).note() is None
    assert "about 1.3 GB; trainer.cache=0 keeps none" in Caching(1, 1, 1_270_000_000).note()
    several = Caching(1, 1, 1_270_000_000).note(4)
    assert several.startswith("decoded images are kept in 4 temporary files, one per process, in ")
    assert "about 5.1 GB" in several


def test_both_loaders_hand_over_batches_in_shared_memory():
    module = data_module(noise(9), workers=2)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        batches = list(loader)
        assert loader.collate_fn._is_taken.sum() == len(batches)
        assert batches[0]["image"].shape[1:] == loader.collate_fn.shape
