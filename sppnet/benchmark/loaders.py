"""Loaders of this project, torchvision and timm, each from files to the network's input.

All yield (images, labels), float32 (N, 3, 224, 224) on the device and int64 (N,): every file once in a random order, a
smaller last batch left out. Crops are random areas (RandomResizedCrop), or of 224 from a shorter side of 256.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sppnet.benchmark.timing import Work, on_one_thread, with_default_malloc
from sppnet.classify.augmentation import Augmentation
from sppnet.classify.caching import NO_CACHING, Caching
from sppnet.classify.datamodule import ClassificationData
from sppnet.data.sources import ImageData
from sppnet.network import IMAGENET_MEAN, IMAGENET_STD

# torchvision decodes to tensors by TorchCodec, since its own decoders are deprecated.
decode_image: Callable[[str], Any] | None
try:
    from torchcodec.decoders import decode_image  # type: ignore[attr-defined]
except (ImportError, OSError, RuntimeError):  # not installed, or its libraries do not load on this machine
    decode_image = None

SIDE = 224
SMALLEST_AREA = 0.08  # of random areas: the default of torchvision and of timm
_MEAN, _STD = [value / 255 for value in IMAGENET_MEAN], [value / 255 for value in IMAGENET_STD]

Epoch = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Loading:
    """What is the same for all loaders."""

    batch_size: int
    workers: int  # processes, kept from epoch to epoch
    device: torch.device


def random_area() -> v2.Transform:
    """Returns torchvision's RandomResizedCrop."""
    return v2.RandomResizedCrop(SIDE, (SMALLEST_AREA, 1.0), antialias=True)


def random_place() -> v2.Transform:
    """Returns torchvision's Resize and RandomCrop."""
    return v2.Compose([v2.Resize(256, antialias=True), v2.RandomCrop(SIDE)])


def our_loader(
    data: ImageData, loading: Loading, augmentation: Augmentation | None = None, caching: Caching = NO_CACHING
) -> ClassificationData:
    """Returns our batches. `augmentation` None: crops at one of five positions."""
    return ClassificationData(
        data,
        batch_size=loading.batch_size,
        crop_side=SIDE,
        size_of_step=lambda epoch, step: SIDE,
        input_mean=IMAGENET_MEAN,
        input_std=IMAGENET_STD,
        color=False,
        augmentation=augmentation,
        seed=0,
        workers=loading.workers,
        caching=caching,
        compiled=loading.device.type == "cuda",
    )


def our_epoch(data_module: ClassificationData, device: torch.device) -> Epoch:
    """Returns an epoch of our loader, with the conversion on the device."""
    loader, mean, std = data_module.train_dataloader(), data_module.input_mean, data_module.input_std

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            image, mirrored, labels = (
                batch[key].to(device, non_blocking=True) for key in ("image", "mirrored", "label")
            )
            yield data_module.training_input(image, mirrored, None, SIDE, mean, std), labels

    return epoch


def torchvision_epochs(root: Path, loading: Loading, crop: v2.Transform) -> dict[str, Epoch]:
    """Returns an epoch of ImageFolder and torchvision's transforms by Pillow, and one by tensors.

    Args:
        root: a folder of class folders.
        loading: what is the same for all loaders.
        crop: `random_area` or `random_place`.
    """
    mirror, normalize = v2.RandomHorizontalFlip(), v2.Normalize(_MEAN, _STD)
    by_pillow = v2.Compose([crop, mirror, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), normalize])
    by_tensors = v2.Compose([crop, mirror, v2.ToDtype(torch.float32, scale=True), normalize])
    folders = {"Pillow": ImageFolder(str(root), by_pillow)}
    if decode_image is not None:
        folders["tensors"] = ImageFolder(str(root), by_tensors, loader=decode_image)
    return {name: _plain_epoch(_plain_loader(images, loading), loading.device) for name, images in folders.items()}


def timm_epochs(root: Path, loading: Loading) -> dict[str, Epoch]:
    """Returns an epoch of timm's loader of random areas with the conversion in the workers, and one by its prefetcher.

    Colours are left as they are, unlike by timm's defaults, because the others do no such work.
    """
    import timm.data

    library: Any = timm.data
    epochs = {}
    for name, by_prefetcher in (("in workers", False), ("prefetcher", True)):
        loader = library.create_loader(
            library.create_dataset("", root=str(root), is_training=True),
            SIDE,
            loading.batch_size,
            is_training=True,
            color_jitter=None,
            num_workers=loading.workers,
            persistent_workers=loading.workers > 0,
            use_prefetcher=by_prefetcher,
            device=loading.device,
            pin_memory=loading.device.type == "cuda",
        )
        epochs[name] = _plain_epoch(loader, loading.device)
    return epochs


def our_work(epoch: Epoch) -> Work:
    """Returns going through an epoch of ours, with one thread in this process."""
    return on_one_thread(_through(epoch))


def plain_works(epochs: dict[str, Epoch]) -> dict[str, Work]:
    """Returns going through an epoch of each plain loader, with one thread in this process and malloc as it comes."""
    return {name: with_default_malloc(on_one_thread(_through(epoch))) for name, epoch in epochs.items()}


def _through(epoch: Epoch) -> Work:
    def work() -> None:
        for _ in epoch():
            pass

    return work


def _plain_loader(images: ImageFolder, loading: Loading) -> DataLoader[Any]:
    return DataLoader(
        images,
        loading.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=loading.workers,
        persistent_workers=loading.workers > 0,
        pin_memory=loading.device.type == "cuda",
    )


def _plain_epoch(loader: Iterable[Sequence[Tensor]], device: torch.device) -> Epoch:
    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return epoch
