"""Settings of fine-tuning and the windows it uses: labelled by their overlaps with objects, drawn into batches.

Letters: n windows of a batch, d values of a pooled window, C classes of objects; label 0 is the background.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

# Pools windows of images: (images int64 (n,), windows int64 (n,), mirrored bool (n,)) -> float32 (n, d).
PoolWindows = Callable[[np.ndarray, np.ndarray, np.ndarray], Tensor]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tuning: the `finetune` section. The rates are the paper's. Raises ValueError for values out of range."""

    steps: int = 300_000
    dropped_after: int = 250_000  # steps, after which the learning rate is a tenth
    learning_rate: float = 1e-4
    momentum: float = 0.9  # not in the paper; as in training
    weight_decay: float = 5e-4  # not in the paper; as in training
    dropout: float = 0.5
    batch_size: int = 128  # windows; not in the paper, but in its release
    positive_share: float = 0.25  # of the windows of a batch
    positive_overlap: float = 0.5  # windows that overlap an object at least so much are of its class
    background_overlap: float = 0.1  # from here to positive_overlap, windows are background; below, they are not used
    validate_every: int = 2_000  # steps
    validation_batches: int = 50
    gigabytes: float = 4.0  # of memory for pooled windows; if they do not fit, they are read from their maps

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "validation_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"finetune.{name}={getattr(self, name)}: must be at least 1")
        for name in ("momentum", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"finetune.{name}={getattr(self, name)}: must be at least 0 and below 1")
        for name in ("weight_decay", "gigabytes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"finetune.{name}={getattr(self, name)}: must be at least 0")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"finetune.learning_rate={self.learning_rate}: must be above 0")
        self._check_together()

    def _check_together(self) -> None:
        """Raises ValueError for values that do not fit each other."""
        if self.steps % self.validate_every:
            raise ValueError(
                f"finetune.steps={self.steps}: must be a multiple of finetune.validate_every={self.validate_every}"
            )
        if not 0 < self.positives < self.batch_size:
            raise ValueError(
                f"finetune.positive_share={self.positive_share}: must leave room for positives and background among "
                f"the {self.batch_size} windows of a batch"
            )
        if not 0 <= self.background_overlap < self.positive_overlap <= 1:
            raise ValueError(
                f"finetune.background_overlap={self.background_overlap}, finetune.positive_overlap="
                f"{self.positive_overlap}: must rise from 0 to 1"
            )

    @property
    def positives(self) -> int:
        """The positive windows of a batch."""
        return round(self.positive_share * self.batch_size)

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        return self.learning_rate * (1.0 if step < self.dropped_after else 0.1)


class LabelledWindows(NamedTuple):
    """Windows of the images of a split that are used in fine-tuning."""

    positives: np.ndarray  # int64 (p, 3): image, window, label from 1
    background: np.ndarray  # int64 (m, 2): image, window

    def check(self, split: str) -> None:
        """Raises ValueError if there is nothing to draw from."""
        if not len(self.positives) or not len(self.background):
            raise ValueError(
                f"fine-tuning: found {len(self.positives):,} positive and {len(self.background):,} background windows "
                f"in the {split} images, and needs some of both"
            )


def labelled_windows(highest: list[np.ndarray], settings: FinetuneSettings) -> LabelledWindows:
    """Labels the windows of all images by their overlaps with objects.

    Args:
        highest: for each image, float (K, C), each window's highest overlap with an object of each class.
        settings: the limits.
    """
    positives, background = [np.empty((0, 3), np.int64)], [np.empty((0, 2), np.int64)]
    for image, by_class in enumerate(highest):
        best, label = by_class.max(axis=1, initial=0), by_class.argmax(axis=1) + 1
        of_object = np.flatnonzero(best >= settings.positive_overlap)
        near = np.flatnonzero((best >= settings.background_overlap) & (best < settings.positive_overlap))
        positives.append(np.stack([np.full_like(of_object, image), of_object, label[of_object]], axis=1))
        background.append(np.stack([np.full_like(near, image), near], axis=1))
    return LabelledWindows(np.concatenate(positives), np.concatenate(background))


class WindowsToTuneOn(NamedTuple):
    """The windows of a split, and what pools them."""

    windows: LabelledWindows
    pool: PoolWindows


class WindowBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of pooled windows and their labels, each a function of the seed and the step alone.

    Item `step` is float32 (n, d) and int64 (n,): first the positives, drawn from all positive windows of all images
    with equal probability, then the background; each window mirrored or not.
    """

    def __init__(self, windows: LabelledWindows, pool: PoolWindows, settings: FinetuneSettings, seed: int) -> None:
        self.windows, self.pool, self.settings, self.seed = windows, pool, settings, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self.seed, step])
        number, size = self.settings.positives, self.settings.batch_size
        positives = self.windows.positives[random.integers(len(self.windows.positives), size=number)]
        background = self.windows.background[random.integers(len(self.windows.background), size=size - number)]
        mirrored = random.random(size) < 0.5

        drawn = np.concatenate([positives[:, :2], background])
        labels = np.concatenate([positives[:, 2], np.zeros(size - number, np.int64)])
        return self.pool(drawn[:, 0], drawn[:, 1], mirrored), torch.from_numpy(labels)


class StepSampler(Sampler[int]):
    """Samples the steps of an epoch, which are numbered through all epochs. Lightning calls `set_epoch`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps  # of one epoch
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        first, self.start = self.start, 0
        return iter(range(self.epoch * self.steps + first, (self.epoch + 1) * self.steps))
