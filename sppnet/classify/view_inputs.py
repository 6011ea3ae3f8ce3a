"""Loads what the views of images are computed from: crops and resized whole images, in loader processes.

Shape letters: P crops of an image.
"""

import math
from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sppnet.classify.views import ViewProtocol, windows_at
from sppnet.data.images import UnreadableImage, decode_image, resize_shorter_side
from sppnet.data.sources import Images, read_image, skip_hint
from sppnet.runtime.processes import LOADER_TIMEOUT, start_loader_worker

LOADER_BATCH_BYTES = 4 << 20  # a loader process holds two batches, and Docker gives 64 MB of shared memory
MAX_LOADER_BATCH = 8  # images


class Inputs(NamedTuple):
    """What the views of one image are computed from. All tensors are uint8."""

    image_index: int
    crops: Tensor | None  # (P, view_size, view_size, 3)
    whole: list[Tensor]  # (h, w, 3) each, at the scales of `whole_scales`

    @property
    def tensors(self) -> list[Tensor]:
        """The crops, if there are any, and the whole images."""
        return self.whole if self.crops is None else [self.crops, *self.whole]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensors."""
        return sum(tensor.numel() for tensor in self.tensors)


def whole_scales(protocol: ViewProtocol) -> list[int]:
    """Returns the shorter sides at which whole images go through the network, each once."""
    return sorted(set(protocol.full_scales) | set(protocol.scales if protocol.maps else ()))


class ViewInputs(Dataset[Inputs]):
    """The inputs of every image: decoded, resized and cropped.

    Raises UnreadableImage for an unreadable file: testing never skips an image.
    """

    def __init__(self, images: Images, protocol: ViewProtocol) -> None:
        self.images, self.protocol = images, protocol

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Inputs:
        encoded, name = read_image(self.images, index)
        try:
            image = decode_image(encoded, name)
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}; {skip_hint(name)}") from error

        crops = [] if self.protocol.maps else self._crops(image)
        whole = [
            resize_shorter_side(image, scale).permute(1, 2, 0).contiguous() for scale in whole_scales(self.protocol)
        ]
        return Inputs(index, torch.stack(crops) if crops else None, whole)

    def _crops(self, image: Tensor) -> list[Tensor]:
        """Cuts the windows out of an image: uint8 (3, h, w) -> (view_size, view_size, 3) each."""
        crops = []
        for scale in self.protocol.scales:
            resized = resize_shorter_side(image, scale)
            windows = windows_at(self.protocol, *resized.shape[1:])
            crops += [resized[:, y0:y1, x0:x1].permute(1, 2, 0) for x0, y0, x1, y1 in windows]
        return crops


class PackedInputs(NamedTuple):
    """The inputs of some images in one tensor, so that a loader process hands over one piece of shared memory."""

    image_indices: list[int]
    shapes: list[tuple[tuple[int, ...] | None, list[tuple[int, ...]]]]  # of crops and whole images, by image
    pixels: Tensor  # uint8, flat: of every image the crops, then the whole images


def pack(batch: Sequence[Inputs]) -> PackedInputs:
    """Packs inputs; in a loader process into shared memory. Raises RuntimeError if that is full.

    Torch would move tensors in lists to shared memory one by one, in a thread whose errors are lost.
    """
    shapes = [
        (None if inputs.crops is None else tuple(inputs.crops.shape), [tuple(whole.shape) for whole in inputs.whole])
        for inputs in batch
    ]
    pixels = torch.cat([tensor.flatten() for inputs in batch for tensor in inputs.tensors])
    if get_worker_info() is not None:
        pixels.share_memory_()
    return PackedInputs([inputs.image_index for inputs in batch], shapes, pixels)


def unpack(packed: PackedInputs) -> list[Inputs]:
    """Returns copies of packed inputs: images may wait for long, and shared memory and open files are few."""
    shapes = [shape for crops, whole in packed.shapes for shape in ([] if crops is None else [crops]) + whole]
    parts = packed.pixels.split([math.prod(shape) for shape in shapes])
    tensors = (part.clone().view(shape) for part, shape in zip(parts, shapes, strict=True))
    return [
        Inputs(index, None if crops is None else next(tensors), [next(tensors) for _ in whole])
        for index, (crops, whole) in zip(packed.image_indices, packed.shapes, strict=True)
    ]


def loader_batch_size(protocol: ViewProtocol) -> int:
    """Returns how many 4:3 images fit into LOADER_BATCH_BYTES, from 1 to MAX_LOADER_BATCH."""
    crops = 0 if protocol.maps else len(protocol.scales) * len(protocol.positions) * protocol.view_size**2
    pixels = crops + sum(4 * scale**2 // 3 for scale in whole_scales(protocol))
    return min(MAX_LOADER_BATCH, max(1, LOADER_BATCH_BYTES // (3 * pixels)))


def load_inputs(
    images: Images, protocol: ViewProtocol, indices: Sequence[int], *, workers: int
) -> Generator[Inputs, None, None]:
    """Yields the inputs of the images at `indices`, in this order.

    Close it to end its workers. Otherwise, after a worker died, torch raises in this process each time any child exits.
    """
    loader = DataLoader(
        ViewInputs(images, protocol),
        batch_size=loader_batch_size(protocol),
        sampler=list(indices),
        collate_fn=pack,
        num_workers=workers,
        timeout=LOADER_TIMEOUT if workers else 0,
        worker_init_fn=start_loader_worker,
    )
    batches = iter(loader)
    try:
        for packed in batches:
            yield from unpack(packed)
    finally:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]
