"""Batches of network input, at their size of training, from encoded images and labels.

Workers decode, crop and augment single images (`sppnet.classify.loading`). The device mirrors, alters colours and
resizes whole batches. The paper's 180 x 180 image is its 224 x 224 crop resized (arXiv:1406.4729v4, §2.3), so switching
sizes is one call on the device, and no loader is rebuilt.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from sppnet.classify.augmentation import Augmentation
from sppnet.classify.caching import NO_CACHING, Caching
from sppnet.classify.loading import (
    BalancedSampler,
    CenterCrops,
    EpochSampler,
    ShareSampler,
    TrainingCrops,
    start_training_worker,
)
from sppnet.data.batches import to_network_input, training_input
from sppnet.data.pixels import PixelCache
from sppnet.data.sources import ImageData
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.loaders import ResumingLoader, WatchedLoader
from sppnet.runtime.names import counted
from sppnet.runtime.shared_batches import SharedBatches


class ClassificationData(LightningDataModule):
    """Training batches at the size of their step, validation batches of centre crops.

    A batch on the device is (images, labels). Images are float32 (N, 3, s, s) in channels_last on the network's scale,
    where s is the size of the step in training and `crop_side` in validation. Labels are int64 (N,).

    Args:
        data: what `sppnet.data.sources.open_data` returns.
        batch_size: images per device and step.
        crop_side: of the crops in pixels, 224 in the paper; images are resized to a shorter side 8/7 of that before.
        size_of_step: from the epoch and the step in it, both counted from 0, to the side in pixels.
        input_mean, input_std: of the network.
        color: whether training alters colours (AlexNet's PCA lighting).
        mirror: whether training mirrors half of the images left to right.
        augmentation: of single training images besides; None: their crops are the paper's five, and nothing else.
        balanced: whether an epoch draws as many images of every class.
        seed: of order, crops, mirroring, colours and augmentation.
        workers: loader processes, 0 to load in the training process.
        caching: whether decoded images are kept, and how many bytes of them.
        compiled: whether the functions that prepare training batches on the device are compiled, once per size.
        max_unreadable: share of the training images that may be unreadable; more raise ValueError. None: see
            `allowed_unreadable`.
        allow_changed_data: whether to resume from a checkpoint that was trained on other names or labels.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int,
        crop_side: int,
        size_of_step: Callable[[int, int], int],
        input_mean: Sequence[float],
        input_std: Sequence[float],
        color: bool,
        mirror: bool = True,
        augmentation: Augmentation | None = None,
        balanced: bool = False,
        seed: int,
        workers: int,
        caching: Caching = NO_CACHING,
        compiled: bool = False,
        max_unreadable: float | None = 1.0,
        allow_changed_data: bool = False,
    ) -> None:
        super().__init__()
        self.data, self.batch_size, self.crop_side = data, batch_size, crop_side
        self.size_of_step = size_of_step
        self.input_mean, self.input_std, self.color = tuple(input_mean), tuple(input_std), color
        self.mirror, self.augmentation, self.balanced = mirror, augmentation, balanced
        self.seed, self.workers, self.caching = seed, workers, caching
        self.training_input = torch.compile(training_input, dynamic=False) if compiled else training_input
        self.max_unreadable, self.allow_changed_data = max_unreadable, allow_changed_data
        self.unreadable: set[str] = set()  # a message for each unreadable training image, which begins with its name

    def train_dataloader(self) -> ResumingLoader:
        """Returns the loader of this process's share of the training images, in a new order every epoch."""
        rank, processes = self._rank_and_processes()
        share = {"seed": self.seed, "rank": rank, "processes": processes}
        images = self.data.train
        sampler = BalancedSampler(images.labels, **share) if self.balanced else EpochSampler(len(images), **share)
        # A smaller last batch would be compiled again, so it is dropped, unless it is the only one.
        options = self._loader_options() | {"sampler": sampler, "drop_last": len(sampler) >= self.batch_size}
        augmentation, cache = self.augmentation, self._caches[0]
        crops = TrainingCrops(images, side=self.crop_side, seed=self.seed, augmentation=augmentation, cache=cache)
        return ResumingLoader(crops, **options)

    def val_dataloader(self) -> WatchedLoader[dict[str, Any]]:
        """Returns the loader of this process's share of the validation images."""
        rank, processes = self._rank_and_processes()
        sampler = ShareSampler(len(self.data.val), rank=rank, processes=processes)
        crops = CenterCrops(self.data.val, side=self.crop_side, cache=self._caches[1])
        return WatchedLoader(crops, sampler=sampler, **self._loader_options())

    @cached_property
    def _caches(self) -> tuple[PixelCache | None, PixelCache | None]:
        """The decoded images that are kept, of training and of validation."""
        return self.caching.caches(self.data)

    def teardown(self, stage: str) -> None:
        """Gives back the disk that images are kept on, which the next job of a sweep may need."""
        for cache in filter(None, self._caches):
            cache.close()

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the data set."""
        return self.data.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """Returns, for the checkpoint, the fingerprint of the data and the unreadable images of all processes.

        Every process has to call it.
        """
        _, processes = self._rank_and_processes()
        if processes > 1:
            gathered: list[set[str]] = [set()] * processes
            torch.distributed.all_gather_object(gathered, self.unreadable)
            self.unreadable = set().union(*gathered)
        return {"fingerprint": self.fingerprint, "unreadable": sorted(self.unreadable)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the unreadable images. Raises ValueError if the data is not that of the checkpoint."""
        saved = state_dict["fingerprint"]
        if saved != self.fingerprint and not self.allow_changed_data:
            raise ValueError(
                f"the data has changed since the checkpoint was saved: its fingerprint was {saved} and is "
                f"{self.fingerprint}; restore the data, start a new run with another run=PATH, or continue with the "
                "changed data by trainer.allow_changed_data=true"
            )
        self.unreadable = set(state_dict["unreadable"])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Makes network input of a batch that is on the device."""
        assert self.trainer is not None
        if not self.trainer.training:
            return to_network_input(batch["image"].permute(0, 3, 1, 2), self.input_mean, self.input_std), batch["label"]

        self._warn_of_unreadable(batch["unreadable"])
        color, mirrored = batch["color"] if self.color else None, batch["mirrored"] & self.mirror
        size = self.size_of_step(self.trainer.current_epoch, self._step())
        images = self.training_input(batch["image"], mirrored, color, size, self.input_mean, self.input_std)
        return images, batch["label"]

    def _step(self) -> int:
        """Returns the step in the epoch that the batch is for which is being made, from 0."""
        assert self.trainer is not None
        # Lightning counts a batch as ready after it is on the device, also in an epoch that was resumed.
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _rank_and_processes(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.workers,
            "collate_fn": self._collate(),
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": start_training_worker,
        }

    def _collate(self) -> SharedBatches:
        shape = (self.crop_side, self.crop_side, 3)
        return SharedBatches("image", workers=self.workers, batch_size=self.batch_size, shape=shape)

    def _warn_of_unreadable(self, messages: list[str]) -> None:
        """Warns once of each unreadable training image. Raises ValueError if there are too many of them."""
        for message in "\n".join(filter(None, messages)).split("\n"):
            if message and message not in self.unreadable:
                self.unreadable.add(message)
                warnings.warn(f"skipping an unreadable training image: {message}", stacklevel=2)

        bad, total = len(self.unreadable), len(self.data.train)
        if bad > (allowed := allowed_unreadable(self.max_unreadable, total)):
            more = larger_share(bad, total)
            raise ValueError(
                f"{bad} of {counted(total, 'training image')} cannot be read, more than allowed ({allowed}); the "
                f"warnings name them; {shown_command('prepare_data')} reports all of them, and makes a store without "
                f"them; trainer.max_unreadable={more} allows {allowed_unreadable(more, total)}"
            )


def larger_share(unreadable: int, images: int) -> float:
    """Returns a round share of so many images that has room for the unreadable ones and half as many more."""
    share = 1.5 * unreadable / images
    step = 10 ** math.floor(math.log10(share))
    return min(1.0, round(step * math.ceil(share / step), 9))


def allowed_unreadable(share: float | None, images: int) -> int:
    """Returns how many of so many training images may be unreadable.

    With None 1 %, but up to 5 of a small set, as long as they are at most a tenth of it: one damaged photo of thirty
    does not stop a training.
    """
    if share is None:
        return max(images // 100, min(5, images // 10))
    return int(share * images)
