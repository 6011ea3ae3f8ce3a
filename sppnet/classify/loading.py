"""Loads training and validation crops: data sets of crops, and samplers.

Workers decode, resize and crop: always to crops of one size, so they never know which size the epoch trains at.

Everything random about an image is a function of (seed, epoch, index), whatever the number of workers.
"""

import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sppnet.data.batches import COLOR_STANDARD_DEVIATION
from sppnet.data.images import UnreadableImage, crop, decode_image, resize_shorter_side
from sppnet.data.pixels import PixelCache, cached
from sppnet.data.sources import LabelledImages
from sppnet.geometry import CROP_POSITIONS
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.names import printable
from sppnet.runtime.processes import start_loader_worker
from sppnet.runtime.signals import STOP_SIGNALS

if TYPE_CHECKING:  # it imports torchvision, which takes seconds, and commands that do not train need this file too
    from sppnet.classify.augmentation import Augmentation

# An unreadable training image is replaced by another; after this many in a row the data set is at fault.
MAX_REPLACEMENTS = 20


def shorter_side_for(crop_side: int) -> int:
    """Returns the shorter side of images before they are cropped: 256 for the paper's crops of 224, 8/7 in general."""
    return round(crop_side * 8 / 7)


class TrainingCrops(Dataset[dict[str, Any]]):
    """Training images, cropped at random, with the random numbers for the device.

    An item is indexed by (epoch, index), or by (epoch, index, repetition) where an epoch uses images several times. It
    holds `image` uint8 (side, side, 3), `label`, `mirrored` bool, `color` float32 (3,) and `unreadable`, a line for
    each file that had to be replaced ("" nearly always).

    Args:
        images: encoded images and labels.
        side: of the crops in pixels.
        seed: of everything random.
        augmentation: of the images; None crops at one of the paper's five positions and alters nothing.
        cache: of the images before they are cropped; None decodes them every time.
    """

    def __init__(
        self,
        images: LabelledImages,
        *,
        side: int,
        seed: int,
        augmentation: "Augmentation | None" = None,
        cache: PixelCache | None = None,
    ) -> None:
        self.images, self.side, self.seed, self.augmentation, self.cache = images, side, seed, augmentation, cache
        self.crops_whole_images = augmentation is not None and augmentation.random_crop is not None

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, *key])
        position = CROP_POSITIONS[random.integers(len(CROP_POSITIONS))]
        mirrored = bool(random.integers(2))
        color = random.normal(0.0, COLOR_STANDARD_DEVIATION, 3).astype(np.float32)
        seed = 0 if self.augmentation is None else int(random.integers(2**63))

        image, index, unreadable = self._read_or_replace(key[1], random)
        if not self.crops_whole_images:
            image = crop(image, self.side, position)
        if self.augmentation is not None:
            image = self.augmentation(image, seed)
        return {
            "image": image.permute(1, 2, 0),
            "label": int(self.images.labels[index]),
            "mirrored": mirrored,
            "color": torch.from_numpy(color),
            "unreadable": "\n".join(unreadable),
        }

    def _read_or_replace(self, index: int, random: np.random.Generator) -> tuple[Tensor, int, list[str]]:
        """Reads the image at `index` or, while that is unreadable, at an index drawn from `random`.

        Returns the image before it is cropped, its index, and a line for every unreadable one.
        """
        unreadable: list[str] = []
        while True:
            try:
                return cached(self.cache, index, self._uncropped), index, unreadable
            except UnreadableImage as error:
                unreadable.append(str(error))
                if len(unreadable) == MAX_REPLACEMENTS:
                    raise UnreadableImage(
                        f"{MAX_REPLACEMENTS} unreadable images in a row, last {error}; "
                        f"{shown_command('prepare_data')} reports all of them"
                    ) from error
            index = int(random.integers(len(self.images)))

    def _uncropped(self, index: int) -> Tensor:
        """Decodes an image: at its full size for random crops, at its shorter side for crops at positions."""
        image = decode_image(self.images.read(index), self.images.name(index))
        return image if self.crops_whole_images else resize_shorter_side(image, shorter_side_for(self.side))


class CenterCrops(Dataset[dict[str, Any]]):
    """Validation images, each cropped at its centre: `image` uint8 (side, side, 3) and `label`.

    Raises UnreadableImage for an unreadable file: validation never skips an image.

    Args:
        images: encoded images and labels.
        side: of the crops in pixels.
        cache: of the crops; None decodes the images every time.
    """

    def __init__(self, images: LabelledImages, *, side: int, cache: PixelCache | None = None) -> None:
        self.images, self.side, self.cache = images, side, cache

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = cached(self.cache, index, self._cropped)
        return {"image": image.permute(1, 2, 0), "label": int(self.images.labels[index])}

    def _cropped(self, index: int) -> Tensor:
        try:
            image = decode_image(self.images.read(index), self.images.name(index))
        except UnreadableImage as error:
            name = printable(self.images.name(index))
            raise UnreadableImage(
                f"{error}; repair the file, or skip it with {shown_command('prepare_data')} exclude=[{name}]"
            ) from error
        return crop(resize_shorter_side(image, shorter_side_for(self.side)), self.side, "center")


class EpochSampler(Sampler[tuple[int, ...]]):
    """Samples (epoch, index) for this process's share of an epoch, in an order that depends only on (seed, epoch).

    Together the shares hold every image once, except the few left over when they do not divide evenly.

    Lightning calls `set_epoch`. With `start`, the next iteration skips the first `start` images of its share.
    """

    def __init__(self, images: int, *, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.images, self.seed, self.rank, self.processes = images, seed, rank, processes
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.processes

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        keys = self.keys(np.random.default_rng([self.seed, self.epoch]))
        share = keys[self.rank :: self.processes][self.start : len(self)]
        self.start = 0
        return ((self.epoch, *map(int, key)) for key in share)

    def keys(self, random: np.random.Generator) -> np.ndarray:
        """Returns what follows the epoch in the samples of all processes: int64 (n, 1), the indices."""
        return random.permutation(self.images)[:, None]


class BalancedSampler(EpochSampler):
    """Samples (epoch, index, repetition), as many images of every class in an epoch.

    An epoch is about as long as that of EpochSampler: images // C samples of each of the C classes that have images.
    Larger classes show as many of their images, other ones in every epoch. Smaller classes repeat theirs: all equally
    often, and some, other ones in every epoch, once more. The repetition counts from 0 how often an image came before
    in the epoch, so that its crops differ.

    Args:
        labels: int64 (images,).
    """

    def __init__(self, labels: np.ndarray, *, seed: int, rank: int = 0, processes: int = 1) -> None:
        super().__init__(len(labels), seed=seed, rank=rank, processes=processes)
        counts = np.bincount(labels)
        self.labels, self.counts = labels, counts[counts > 0]
        self.of_each = len(labels) // len(self.counts)

    def __len__(self) -> int:
        return len(self.counts) * self.of_each // self.processes

    def keys(self, random: np.random.Generator) -> np.ndarray:
        """Returns what follows the epoch in the samples: int64 (n, 2), indices and repetitions."""
        shuffled = random.permutation(self.images)
        by_class = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        firsts = np.cumsum(self.counts) - self.counts

        repetitions, places = np.divmod(np.arange(self.of_each), self.counts[:, None])  # (classes, of_each) each
        keys = np.stack([by_class[firsts[:, None] + places], repetitions], axis=-1).reshape(-1, 2)
        return random.permutation(keys)


class ShareSampler(Sampler[int]):
    """Samples this process's share of a validation set. Together the shares hold every image exactly once."""

    def __init__(self, images: int, *, rank: int = 0, processes: int = 1) -> None:
        self.share = range(rank, images, processes)

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)


def start_training_worker(worker: int) -> None:
    """The `worker_init_fn` of the loaders of a training run: leaves stop signals to the training process.

    Schedulers and terminals signal all processes of a job, but the step under way needs its batch.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        elif hasattr(signal, "sigwaitinfo"):  # not on macOS
            # From the training process it still ends the worker.
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            threading.Thread(target=_exit_on_parents_sigterm, daemon=True).start()
    start_loader_worker(worker)  # after SIGTERM is blocked, because its thread would receive it


def _exit_on_parents_sigterm() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
