"""From encoded images and labels to batches of network input, at the size of the epoch.

Workers decode, resize and crop: always the same 224 x 224 region, so they never know which size the epoch trains at.
The device mirrors, changes colours and resizes whole batches. The paper's 180 x 180 image is the same 224 x 224 region
resized (arXiv:1406.4729v4, §2.3), so switching sizes is one call on the device and no loader is built anew.

Everything random about an image is a function of (seed, epoch, index), whatever the number of workers.
"""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sppnet.classify.checkpoints import SIGNALS
from sppnet.data.batches import COLOR_STANDARD_DEVIATION, to_network_input, training_input
from sppnet.data.images import UnreadableImage, crop, decode_image, resize_shorter_side
from sppnet.data.sources import ImageData, Images, LabelledImages
from sppnet.geometry import CROP_POSITIONS
from sppnet.runtime.names import printable
from sppnet.runtime.processes import LOADER_TIMEOUT, start_loader_worker

# A training image that cannot be read is replaced by another; after this many in a row the data set is at fault.
MOST_REPLACEMENTS = 20


def shorter_side_for(crop_side: int) -> int:
    """The shorter side that images are resized to before cropping: 256 for the paper's crops of 224, 8/7 in general."""
    return round(crop_side * 8 / 7)


class TrainingCrops(Dataset[dict[str, Any]]):
    """A training image at one of the paper's five crop positions, with the random numbers for the device.

    Indexed by (epoch, index). Gives `image` uint8 (side, side, 3), `label`, `mirrored` bool, `color` float32 (3,) and
    `unreadable`, a line for each file that had to be replaced ("" nearly always). The replacement is the image at an
    index that is itself drawn from (seed, epoch, index).
    """

    def __init__(self, images: LabelledImages, *, side: int, seed: int) -> None:
        self.images, self.side, self.seed = images, side, seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        random = np.random.default_rng([self.seed, epoch, index])
        position = CROP_POSITIONS[random.integers(len(CROP_POSITIONS))]
        mirrored = bool(random.integers(2))
        color = random.normal(0.0, COLOR_STANDARD_DEVIATION, 3).astype(np.float32)
        unreadable: list[str] = []
        while True:
            try:
                image = _read_resized(self.images, index, shorter_side_for(self.side))
                break
            except UnreadableImage as error:
                unreadable.append(str(error))
                if len(unreadable) == MOST_REPLACEMENTS:
                    raise UnreadableImage(f"{MOST_REPLACEMENTS} unreadable images in a row, last {error}") from error
                index = int(random.integers(len(self.images)))
        return {
            "image": crop(image, self.side, position).permute(1, 2, 0),
            "label": int(self.images.labels[index]),
            "mirrored": mirrored,
            "color": torch.from_numpy(color),
            "unreadable": "\n".join(unreadable),
        }


class CenterCrops(Dataset[dict[str, Any]]):
    """The centre crop of every image: `image` uint8 (side, side, 3) and `label`. An unreadable file raises."""

    def __init__(self, images: LabelledImages, *, side: int) -> None:
        self.images, self.side = images, side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = _read_resized(self.images, index, shorter_side_for(self.side))
        except UnreadableImage as error:
            name = printable(self.images.name(index))
            raise UnreadableImage(f"{error}; repair it, or leave it out by prepare_data.py exclude=[{name}]") from error
        label = int(self.images.labels[index])
        return {"image": crop(image, self.side, "center").permute(1, 2, 0), "label": label}


def _read_resized(images: Images, index: int, shorter_side: int) -> Tensor:
    """uint8 (3, h, w) with min(h, w) = `shorter_side`. Raises UnreadableImage."""
    return resize_shorter_side(decode_image(images.read(index), images.name(index)), shorter_side)


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) of this process's share of an epoch, in an order that is a function of (seed, epoch).

    Every image stands once in the shares of all processes together, up to the last few that would make the shares
    unequal. Lightning calls `set_epoch`. The first `start` of the next epoch that is gone through are left out.
    """

    def __init__(self, images: int, *, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.images, self.seed, self.rank, self.processes = images, seed, rank, processes
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        share = order[self.rank :: self.processes][self.start : len(self)]
        self.start = 0
        return ((self.epoch, int(index)) for index in share)


class ShareSampler(Sampler[int]):
    """Indices of this process's share of a validation set: all shares together hold every image exactly once."""

    def __init__(self, images: int, *, rank: int = 0, processes: int = 1) -> None:
        self.share = range(rank, images, processes)

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)


class TrainingLoader(DataLoader[dict[str, Any]]):
    """Goes on inside an epoch where a checkpoint stood; Lightning saves and restores its state.

    Its sampler is an EpochSampler.
    """

    handed_out = 0  # batches of the epoch under way

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.handed_out = self.sampler.start // self.batch_size  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.handed_out % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # Fewer than there were if the data has changed; an epoch under way needs a last batch.
        done = min(state["batches"], len(self) - 1)
        self.sampler.start = done * self.batch_size  # type: ignore[attr-defined, operator]


def _start_worker(worker: int) -> None:
    """Called by torch in every loader process, before it loads anything.

    Signals are left to the trainer: schedulers and terminals signal all processes of a job, but the step in progress
    needs its batch.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        elif hasattr(signal, "sigwaitinfo"):  # not on macOS
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            threading.Thread(target=_end_when_the_trainer_says, daemon=True).start()
    start_loader_worker(worker)  # after SIGTERM is blocked, because its thread would receive it


def _end_when_the_trainer_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


class ClassificationData(LightningDataModule):
    """Training batches at the size of the epoch, validation batches at the centre crop.

    A batch on the device is (images, labels): float32 (N, 3, s, s) in channels_last on the network's scale, s the size
    of the epoch in training and `crop_side` in validation; int64 (N,).

    Args:
        data: what `sppnet.data.sources.open_data` gives.
        batch_size: images per device and step.
        crop_side: pixels of the crops, 224 in the paper, taken from images with a shorter side 8/7 of that.
        size_of_epoch: from the epoch, counted from 0, to its size.
        input_mean, input_std: of the network.
        color: whether training changes colours (AlexNet's PCA lighting).
        seed: of order, crops, mirroring and colours.
        workers: loader processes, 0 to load in the training process.
        compiled: whether the work on training batches on the device is compiled, once per size.
        max_unreadable: share of the training images that may be skipped because they cannot be read.
        allow_changed_data: whether to go on from a checkpoint that was trained on other names or labels.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int,
        crop_side: int,
        size_of_epoch: Callable[[int], int],
        input_mean: Sequence[float],
        input_std: Sequence[float],
        color: bool,
        seed: int,
        workers: int,
        compiled: bool = False,
        max_unreadable: float = 1.0,
        allow_changed_data: bool = False,
    ) -> None:
        super().__init__()
        self.data, self.batch_size, self.crop_side, self.size_of_epoch = (
            data,
            batch_size,
            crop_side,
            size_of_epoch,
        )
        self.input_mean, self.input_std, self.color = tuple(input_mean), tuple(input_std), color
        self.seed, self.workers = seed, workers
        self.training_input = torch.compile(training_input, dynamic=False) if compiled else training_input
        self.max_unreadable, self.allow_changed_data = max_unreadable, allow_changed_data
        self.unreadable: set[str] = set()  # messages that begin with the name

    def train_dataloader(self) -> DataLoader:
        rank, processes = self._place()
        sampler = EpochSampler(len(self.data.train), seed=self.seed, rank=rank, processes=processes)
        # A last batch of another size would cost a compiled graph; but never drop the only one.
        options = self._loader_options() | {"sampler": sampler, "drop_last": len(sampler) >= self.batch_size}
        return TrainingLoader(TrainingCrops(self.data.train, side=self.crop_side, seed=self.seed), **options)

    def val_dataloader(self) -> DataLoader:
        rank, processes = self._place()
        sampler = ShareSampler(len(self.data.val), rank=rank, processes=processes)
        return DataLoader(CenterCrops(self.data.val, side=self.crop_side), sampler=sampler, **self._loader_options())

    @cached_property
    def fingerprint(self) -> str:
        return self.data.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: which data it was trained on, and what of it could not be read.

        Each process has to call it.
        """
        if (processes := self._place()[1]) > 1:
            found: list[set[str]] = [set()] * processes
            torch.distributed.all_gather_object(found, self.unreadable)
            self.unreadable = set().union(*found)
        return {"fingerprint": self.fingerprint, "unreadable": sorted(self.unreadable)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        there = state_dict["fingerprint"]
        if there != self.fingerprint and not self.allow_changed_data:
            raise ValueError(
                f"the data has changed since the checkpoint was saved: its fingerprint was {there} and is "
                f"{self.fingerprint}; put it back, start anew with another run=PATH, or go on with it by "
                "trainer.allow_changed_data=true"
            )
        self.unreadable = set(state_dict["unreadable"])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        assert self.trainer is not None
        if not self.trainer.training:
            return to_network_input(batch["image"].permute(0, 3, 1, 2), self.input_mean, self.input_std), batch["label"]
        self._warn_of_unreadable(batch["unreadable"])
        color = batch["color"] if self.color else None
        size = self.size_of_epoch(self.trainer.current_epoch)
        images = self.training_input(batch["image"], batch["mirrored"], color, size, self.input_mean, self.input_std)
        return images, batch["label"]

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": _start_worker,
            "timeout": LOADER_TIMEOUT if self.workers else 0,
        }

    def _warn_of_unreadable(self, messages: list[str]) -> None:
        """Names each unreadable training image once, in the process that a person reads."""
        for message in "\n".join(filter(None, messages)).split("\n"):
            if message and message not in self.unreadable:
                self.unreadable.add(message)
                warnings.warn(f"skipping an unreadable training image: {message}", stacklevel=2)
        bad, total = len(self.unreadable), len(self.data.train)
        if bad > self.max_unreadable * total:
            raise ValueError(
                f"{bad} of {total} training images cannot be read, more than "
                f"trainer.max_unreadable={self.max_unreadable}; the warnings name them; "
                "scripts/prepare_data.py makes a store without them"
            )
