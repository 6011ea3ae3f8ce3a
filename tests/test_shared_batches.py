"""Batches in shared memory: the same as torch's, kept as long as they are used, and their memory used again."""

import copy
import errno
import gc
import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from sppnet.runtime import shared_batches
from sppnet.runtime.shared_batches import SharedBatches


class Items(Dataset):
    """Item i has an image, uint8 (h, w, 3), whose values depend on i, and values of other kinds."""

    def __init__(self, count, height=7, width=5):
        self.count, self.shape = count, (height, width, 3)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, self.shape, np.uint8)
        return {
            "image": torch.from_numpy(image),
            "label": index,
            "mirrored": index % 3 == 0,
            "color": torch.tensor([index, 0.5, -index], dtype=torch.float32),
            "unreadable": "" if index % 2 else f"line {index}",
        }


def loader(items, workers, batch_size=4, **options):
    collate = SharedBatches("image", workers=workers, batch_size=batch_size, shape=items.shape)
    return DataLoader(items, batch_size=batch_size, num_workers=workers, collate_fn=collate, **options)


def assert_same(batch, expected):
    assert list(batch) == list(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert batch[key].dtype == value.dtype
            assert torch.equal(batch[key], value)
        else:
            assert batch[key] == value


def expected_batches(items, batch_size=4):
    indices = [range(start, min(len(items), start + batch_size)) for start in range(0, len(items), batch_size)]
    return [default_collate([items[i] for i in some]) for some in indices]


def taken(loader):
    """How many slots hold a batch that is used."""
    gc.collect()
    return int(loader.collate_fn._is_taken.sum())


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_of_torch_in_every_epoch(workers):
    items = Items(11)
    batches = loader(items, workers, persistent_workers=workers > 0)
    for _ in range(3):
        for batch, expected in zip(batches, expected_batches(items), strict=True):
            assert_same(batch, expected)


def test_batches_that_are_kept_stay_as_they_are():
    items = Items(90)  # 23 batches, and a worker has four slots
    for batch, expected in zip(list(loader(items, 2)), expected_batches(items), strict=True):
        assert_same(batch, expected)


def test_a_part_of_a_batch_keeps_its_memory():
    items, rows = Items(90), []
    batches = loader(items, 1)
    for batch in batches:
        rows.append(batch["image"][1:3].permute(0, 3, 1, 2)[:, 1])
        del batch
    for row, expected in zip(rows, expected_batches(items), strict=False):
        assert torch.equal(row, expected["image"][1:3, ..., 1])
    del row, rows
    assert taken(batches) == 0


def test_memory_is_used_again_as_soon_as_a_batch_is_not_used():
    batches = loader(Items(200), 2)
    places = {batch["image"].data_ptr() for batch in batches}
    assert len(places) <= 2 * shared_batches._SLOTS
    assert taken(batches) <= 1  # the last one, in `batch` of the comprehension, may be there until it is collected


def test_an_epoch_that_is_left_early_gives_its_memory_back():
    items = Items(60)
    batches = loader(items, 2, persistent_workers=True)
    for _ in range(12):
        iterator = iter(batches)
        assert_same(next(iterator), expected_batches(items)[0])
    del iterator
    for batch, expected in zip(batches, expected_batches(items), strict=True):
        assert_same(batch, expected)
    del batch
    assert taken(batches) == 0


def test_with_workers_no_memory_is_allocated_for_a_batch(monkeypatch):
    """Torch hands over tensors by files in shared memory: none of them is a tensor any more."""
    batches = loader(Items(40), 1)

    def refuse(*arguments):
        raise AssertionError("a tensor is handed over through a file")

    monkeypatch.setattr("torch.multiprocessing.reductions.reduce_storage", refuse)
    monkeypatch.setattr("torch.UntypedStorage._new_shared", refuse)
    assert sum(len(batch["label"]) for batch in batches) == 40


def test_processes_that_are_spawned_get_their_batches_as_torch_hands_them_over(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    items = Items(9)
    batches = loader(items, 2)
    assert len(batches.collate_fn._is_taken) == 0
    for batch, expected in zip(batches, expected_batches(items), strict=True):
        assert_same(batch, expected)


def test_the_start_method_is_not_fixed_by_asking_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: asked.append(allow_none))
    assert shared_batches.loaders_fork() == (multiprocessing.get_all_start_methods()[0] == "fork")
    assert asked == [True]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda batches: loader(Items(40), 2, multiprocessing_context="spawn")]
)
def test_copies_of_a_loader_and_of_its_workers_give_the_same_batches(copied):
    """What they write into is not the memory of the loader that they were copied from."""
    for batch, expected in zip(copied(loader(Items(40), 2)), expected_batches(Items(40)), strict=True):
        assert_same(batch, expected)


def test_a_process_that_drops_a_batch_of_its_parent_gives_no_memory_back():
    """Validation workers are forked while training holds batches, and collect the garbage that it had."""
    batches = loader(Items(40), 1)
    batch = next(iter(batches))
    kept = {"batch": batch}
    del batch
    held = taken(batches)
    process = multiprocessing.get_context("fork").Process(target=kept.clear)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert taken(batches) == held > 0


def test_without_memory_for_all_slots_batches_are_handed_over_as_torch_does(monkeypatch):
    """The kernel refuses more than the memory of the machine at once, and a limit for the process (ulimit -v)."""

    def refused(*arguments):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(shared_batches.mmap, "mmap", refused)
    batches = loader(Items(9), 2)
    monkeypatch.undo()
    for batch, expected in zip(batches, expected_batches(Items(9)), strict=True):
        assert_same(batch, expected)
