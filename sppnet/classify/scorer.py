"""Scoring images by a protocol: one loop for crops, whole images and windows pooled from maps.

Shape letters: N images of equal size, P crops of an image, W windows of an image.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sppnet.classify.views import ViewProtocol, windows_at
from sppnet.data.batches import to_network_input
from sppnet.data.images import UnreadableImage, decode_image, resize_shorter_side
from sppnet.data.sources import Images, read_image, skip_hint
from sppnet.network import SPPNet
from sppnet.runtime.processes import LOADER_TIMEOUT, start_loader_worker
from sppnet.windows import mirrored_windows, pool_image_windows

MAX_WAITING_BYTES = 1 << 30  # of images that wait for others of their size


class Inputs(NamedTuple):
    """What the views of one image are computed from. All tensors are uint8."""

    at: int  # index of the image
    crops: Tensor | None  # (P, view_size, view_size, 3)
    whole: list[Tensor]  # (h, w, 3) each, at the scales of `whole_scales`


def whole_scales(protocol: ViewProtocol) -> list[int]:
    """The shorter sides at which whole images go through the network, each once."""
    return sorted(set(protocol.full_scales) | set(protocol.scales if protocol.maps else ()))


class ViewInputs(Dataset[Inputs]):
    """Decodes, resizes and crops. An unreadable file raises: testing never skips an image."""

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
        crops = []
        if not self.protocol.maps:
            for scale in self.protocol.scales:
                resized = resize_shorter_side(image, scale)
                windows = windows_at(self.protocol, *resized.shape[1:])
                crops += [resized[:, y0:y1, x0:x1].permute(1, 2, 0) for x0, y0, x1, y1 in windows]
        whole = [
            resize_shorter_side(image, scale).permute(1, 2, 0).contiguous() for scale in whole_scales(self.protocol)
        ]
        return Inputs(index, torch.stack(crops) if crops else None, whole)


class Scorer:
    """Mean softmax scores of images over the views of a protocol.

    Everything goes through the network with the paddings of training, and a window on maps takes the cells that a crop
    has (`crop_to_cells`). With `protocol.aligned`, whole images and windows on maps go through `network.aligned()`
    instead, in which cell i is centred on pixel stride * i, and a window takes the cells whose centres lie inside it
    (`window_to_cells`): arXiv:1406.4729v4, Appendix A.

    Args:
        network: on its device, in eval mode.
        protocol: the views.
        pixels: input pixels of one forward pass, which bounds the memory; one image alone may have more.
        autocast: the dtype of convolutions, or None for float32.
    """

    def __init__(
        self, network: SPPNet, protocol: ViewProtocol, *, pixels: int, autocast: torch.dtype | None = None
    ) -> None:
        if reason := protocol.unsuited_to(network):
            side = network.input_side
            raise ValueError(f"{reason}: the network has no pyramid and takes {side} x {side} crops only")
        self.protocol, self.pixels, self.autocast = protocol, pixels, autocast
        self.network = network.to(memory_format=torch.channels_last)
        self.map_network = self.network.aligned() if protocol.aligned else self.network
        self.device = network.fc8.weight.device
        smallest = min([protocol.view_size] * bool(protocol.scales) + protocol.full_scales)
        needed = network.backbone.smallest_input
        if smallest < needed:
            raise ValueError(f"views of {smallest} pixels: the backbone needs at least {needed}")

    def images_per_pass(self, inputs: Inputs) -> int:
        """How many images like this one fit into `pixels`."""
        largest = max([0 if inputs.crops is None else inputs.crops.numel(), *(whole.numel() for whole in inputs.whole)])
        return max(1, 3 * self.pixels // largest)

    @torch.no_grad()  # not inference mode, in which autocast converts every weight anew for every call
    def __call__(self, batch: Sequence[Inputs]) -> Tensor:
        """Scores (N, classes), float32 on the CPU, of images whose inputs have equal shapes."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            views = [*self._crop_views(batch), *self._map_views(batch)]
        return torch.cat(views, dim=1).mean(dim=1).cpu()

    def _crop_views(self, batch: Sequence[Inputs]) -> Iterator[Tensor]:
        """Scores (N, P, classes) of crops, then of mirrored crops."""
        crops = [inputs.crops for inputs in batch if inputs.crops is not None]
        if not crops:
            return
        images = torch.cat(crops)
        per_pass = max(1, 3 * self.pixels // images[0].numel())
        for mirrored in self._sides():
            scores = [_softmax(self.network(self._input(part, mirrored))) for part in images.split(per_pass)]
            yield torch.cat(scores).unflatten(0, (len(batch), -1))

    def _map_views(self, batch: Sequence[Inputs]) -> Iterator[Tensor]:
        """Scores (N, W, classes) per scale and side: windows on the maps, then the whole maps."""
        for i, scale in enumerate(whole_scales(self.protocol)):
            images = torch.stack([inputs.whole[i] for inputs in batch])
            for mirrored in self._sides():
                maps = self.map_network.maps(self._input(images, mirrored))
                if self.protocol.maps and scale in self.protocol.scales:
                    yield self._window_scores(maps, images.shape[1:3], mirrored)
                if scale in self.protocol.full_scales:
                    yield self._class_scores(self.map_network.pool(maps))[:, None]

    def _window_scores(self, maps: Tensor, size: tuple[int, ...], mirrored: bool) -> Tensor:
        windows = np.array(windows_at(self.protocol, *size))
        if mirrored:
            windows = mirrored_windows(windows, size[1])
        crop_side = None if self.protocol.aligned else self.protocol.view_size
        return pool_image_windows(self.map_network, maps, windows, self._class_scores, crop_side=crop_side)

    def _class_scores(self, pooled: Tensor) -> Tensor:
        return _softmax(self.map_network.classify(pooled))

    def _sides(self) -> tuple[bool, ...]:
        return (False, True) if self.protocol.mirrored else (False,)

    def _input(self, pixels: Tensor, mirrored: bool) -> Tensor:
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        images = images.flip(-1) if mirrored else images
        return to_network_input(images, self.network.input_mean, self.network.input_std)


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(dim=1)


class Message(NamedTuple):
    """Inputs of some images in one tensor: one piece of shared memory on the way from a loader process."""

    at: list[int]
    shapes: list[tuple[tuple[int, ...] | None, list[tuple[int, ...]]]]  # of crops and whole images, by image
    pixels: Tensor  # uint8, flat: of every image the crops, then the whole images


MESSAGE_BYTES = 4 << 20  # a loader process holds two messages, and Docker gives 64 MB of shared memory
LARGEST_MESSAGE = 8  # images


def images_per_message(protocol: ViewProtocol) -> int:
    """How many images of 4:3 fit into MESSAGE_BYTES, from 1 to LARGEST_MESSAGE."""
    crops = 0 if protocol.maps else len(protocol.scales) * len(protocol.positions) * protocol.view_size**2
    pixels = crops + sum(4 * scale**2 // 3 for scale in whole_scales(protocol))
    return min(LARGEST_MESSAGE, max(1, MESSAGE_BYTES // (3 * pixels)))


def pack(batch: Sequence[Inputs]) -> Message:
    """In a loader process the pixels are in shared memory. Raises RuntimeError where that is full.

    Tensors in lists would be moved to shared memory one by one, by a thread whose errors are lost.
    """
    shapes = [
        (None if inputs.crops is None else tuple(inputs.crops.shape), [tuple(whole.shape) for whole in inputs.whole])
        for inputs in batch
    ]
    pixels = torch.cat([tensor.flatten() for inputs in batch for tensor in _tensors(inputs)])
    if get_worker_info() is not None:
        pixels.share_memory_()
    return Message([inputs.at for inputs in batch], shapes, pixels)


def unpack(message: Message) -> list[Inputs]:
    """The inputs that were packed, as copies: images may wait for long, and shared memory and open files are few."""
    shapes = [shape for crops, whole in message.shapes for shape in ([] if crops is None else [crops]) + whole]
    parts = message.pixels.split([math.prod(shape) for shape in shapes])
    tensors = (part.clone().view(shape) for part, shape in zip(parts, shapes, strict=True))
    return [
        Inputs(at, None if crops is None else next(tensors), [next(tensors) for _ in whole])
        for at, (crops, whole) in zip(message.at, message.shapes, strict=True)
    ]


def score_images(
    scorer: Scorer, images: Images, indices: Sequence[int], *, workers: int
) -> Generator[tuple[list[int], Tensor], None, None]:
    """Scores every index once: (indices, scores (n, classes)), in an order that brings equal sizes together.

    Use it inside `explained_loader_failures`, and close it.
    """
    loader = DataLoader(
        ViewInputs(images, scorer.protocol),
        batch_size=images_per_message(scorer.protocol),
        sampler=list(indices),
        collate_fn=pack,
        num_workers=workers,
        timeout=LOADER_TIMEOUT if workers else 0,
        worker_init_fn=start_loader_worker,
    )
    with closing(_messages(loader)) as messages:
        for group in _groups(scorer, (inputs for message in messages for inputs in unpack(message))):
            yield [one.at for one in group], scorer(group)


def _messages(loader: DataLoader[Any]) -> Generator[Message, None, None]:
    """The messages of a loader, whose workers end when the generator is closed.

    As long as torch looks after a dead worker, it interrupts this process again for every child that exits.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        if loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def _groups(scorer: Scorer, arriving: Iterator[Inputs]) -> Iterator[list[Inputs]]:
    """Inputs of equal shapes, as many as one pass takes; fewer at the end, and where too many would have to wait."""
    waiting: dict[tuple[Any, ...], list[Inputs]] = {}
    waiting_bytes = 0
    for inputs in arriving:
        shapes = tuple(tensor.shape for tensor in _tensors(inputs))
        group = waiting.setdefault(shapes, [])
        group.append(inputs)
        waiting_bytes += _bytes(inputs)
        full = shapes if len(group) >= scorer.images_per_pass(inputs) else None
        if full is None and waiting_bytes > MAX_WAITING_BYTES:
            full = max(waiting, key=lambda key: len(waiting[key]) * _bytes(waiting[key][0]))
        if full is not None:
            group = waiting.pop(full)
            waiting_bytes -= len(group) * _bytes(group[0])
            yield group
    yield from waiting.values()


def _tensors(inputs: Inputs) -> list[Tensor]:
    return inputs.whole if inputs.crops is None else [inputs.crops, *inputs.whole]


def _bytes(inputs: Inputs) -> int:
    return sum(tensor.numel() for tensor in _tensors(inputs))
