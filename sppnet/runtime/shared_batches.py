"""Batches that loader processes write straight into memory which they share with the process that trains."""

import itertools
import mmap
import multiprocessing
import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

# Slots of a worker: two for the batches that a DataLoader asks for in advance, one for the batch in training, and one
# for the batch that Lightning holds ready.
_SLOTS = 4

_pools: weakref.WeakValueDictionary[int, "SharedBatches"] = weakref.WeakValueDictionary()
_keys = itertools.count()


class SharedBatches:
    """Collates items into memory that is allocated once: the `collate_fn` of a DataLoader whose workers are forked.

    By itself torch allocates shared memory for every batch, whose pages the kernel has to fill with zeros, and hands
    over an open file for every tensor. That takes time, and space in /dev/shm, which is small in containers. Here a
    worker writes into slots of its own, and a slot is free again as soon as no tensor of the batch is left. Batches may
    be kept: a worker without a free slot hands over its batch as torch does. So do the workers of a copied loader, and
    all workers if the system refuses the memory.

    The workers have to be persistent: those of two iterators at once would write into the same slots.

    Args:
        key: of the images in the items, uint8 tensors (h, w, 3) of one size; other values are collated as torch does.
        workers: of the loader.
        batch_size: the most items of a batch.
        shape: of an image.
    """

    def __init__(self, key: str, *, workers: int, batch_size: int, shape: tuple[int, ...]) -> None:
        self.key, self.batch_size, self.shape = key, batch_size, shape
        slots = workers * _SLOTS if loaders_fork() else 0
        try:
            # Memory without a name, not limited by the size of /dev/shm. It takes none before it is written to.
            self._pixels = _shared((slots, batch_size, *shape))
            self._is_taken = _shared((slots,))
        except OSError:  # the kernel allows no more than the memory of the machine at once, and `ulimit -v` less
            self._pixels = self._is_taken = np.empty(0, np.uint8)
        self._pool = next(_keys)
        _pools[self._pool] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles it without slots."""
        return partial(SharedBatches, self.key, workers=0, batch_size=self.batch_size, shape=self.shape), ()

    def __call__(self, items: list[dict[str, Any]]) -> Any:
        """Returns the collated items; in a worker, what becomes that when it arrives in the training process."""
        worker = get_worker_info()
        slot = None if worker is None else self._free_slot(worker.id)
        if slot is None:
            return default_collate(items)

        images = self._pixels[slot, : len(items)]
        torch.stack([item[self.key] for item in items], out=torch.from_numpy(images))
        rest = {key: _collated([item[key] for item in items]) for key in items[0] if key != self.key}
        self._is_taken[slot] = 1
        return _Handover(self._pool, slot, len(items), rest)

    def _free_slot(self, worker: int) -> int | None:
        slots = range(worker * _SLOTS, min(len(self._is_taken), (worker + 1) * _SLOTS))
        return next((slot for slot in slots if not self._is_taken[slot]), None)

    def arrived(self, slot: int, count: int, rest: dict[str, Any]) -> dict[str, Any]:
        """Returns a batch, called in the training process. Its slot is free again when its images are not used."""
        images = self._pixels[slot, :count]
        weakref.finalize(images, _free, self._is_taken, slot, os.getpid())  # torch keeps it as long as its tensors
        values = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in rest.items()
        }
        return {self.key: torch.from_numpy(images), **values}


def _free(is_taken: np.ndarray, slot: int, process: int) -> None:
    """Frees a slot, but not in a process forked from this one, whose copy of the batch ends at another time."""
    if os.getpid() == process:
        is_taken[slot] = 0


class _Handover:
    """A batch on its way: pickled as what it takes to find it in shared memory."""

    def __init__(self, *content: Any) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _arrived, self.content


def _arrived(pool: int, *content: Any) -> dict[str, Any]:
    return _pools[pool].arrived(*content)


def _collated(values: list[Any]) -> Any:
    """Collates values as torch does, but tensors to an array, which is pickled instead of handed over as a file."""
    if isinstance(values[0], Tensor):
        return torch.stack(values).numpy()
    collated = default_collate(values)
    return collated.numpy() if isinstance(collated, Tensor) else collated


def _shared(shape: tuple[int, ...]) -> np.ndarray:
    """Returns zeros, uint8, in memory that is shared with processes that are forked afterwards."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8, size).reshape(shape)


def loaders_fork() -> bool:
    """Whether the workers of a DataLoader share the memory of this process: they start by multiprocessing's default."""
    method = multiprocessing.get_start_method(allow_none=True)  # so as not to fix the default
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"
