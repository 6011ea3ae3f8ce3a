"""Loads images and makes tensors of them in loader processes or threads, and groups images by tensors' shapes."""

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from sppnet.data.images import UnreadableImage, decode_image
from sppnet.data.sources import Images, read_image, skip_hint
from sppnet.runtime.loaders import WatchedLoader
from sppnet.runtime.processes import start_loader_worker

LOADER_BATCH_BYTES = 4 << 20  # a loader process holds two batches, and Docker gives 64 MB of shared memory
MAX_LOADER_BATCH = 8  # images
MAX_WAITING_BYTES = 1 << 30  # of images that wait for others of their size

# Makes the tensors of a decoded image, uint8 (3, h, w) -> uint8 (..., h', w', 3) each.
Preparation = Callable[[Tensor], list[Tensor]]


class Inputs(NamedTuple):
    """What a network is run on for one image: uint8 tensors, pixels as (..., h, w, 3)."""

    image_index: int
    tensors: list[Tensor]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensors."""
        return sum(tensor.numel() for tensor in self.tensors)


class ImageInputs(Dataset[Inputs]):
    """The inputs of every image: read, decoded and prepared.

    Raises UnreadableImage for an unreadable file: no image is ever skipped.
    """

    def __init__(self, images: Images, prepare: Preparation) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Inputs:
        encoded, name = read_image(self.images, index)
        try:
            image = decode_image(encoded, name)
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}; {skip_hint(name)}") from error
        return Inputs(index, self.prepare(image))


class PackedInputs(NamedTuple):
    """The inputs of some images in one tensor, so that a loader process hands over one piece of shared memory."""

    image_indices: list[int]
    shapes: list[list[tuple[int, ...]]]  # of the tensors, by image
    pixels: Tensor  # uint8, flat: the tensors of every image, one after the other


def pack(batch: Sequence[Inputs]) -> PackedInputs:
    """Packs inputs; in a loader process into shared memory. Raises RuntimeError if that is full.

    Torch would move tensors in lists to shared memory one by one, in a thread whose errors are lost.
    """
    shapes = [[tuple(tensor.shape) for tensor in inputs.tensors] for inputs in batch]
    pixels = torch.cat([tensor.flatten() for inputs in batch for tensor in inputs.tensors])
    if get_worker_info() is not None:
        pixels.share_memory_()
    return PackedInputs([inputs.image_index for inputs in batch], shapes, pixels)


def unpack(packed: PackedInputs) -> list[Inputs]:
    """Returns copies of packed inputs: images may wait for long, and shared memory and open files are few."""
    parts = iter(packed.pixels.split([math.prod(shape) for shapes in packed.shapes for shape in shapes]))
    return [
        Inputs(index, [next(parts).clone().view(shape) for shape in shapes])
        for index, shapes in zip(packed.image_indices, packed.shapes, strict=True)
    ]


def loader_batch_size(pixels: int) -> int:
    """Returns how many images of `pixels` pixels fit into LOADER_BATCH_BYTES, from 1 to MAX_LOADER_BATCH."""
    return min(MAX_LOADER_BATCH, max(1, LOADER_BATCH_BYTES // (3 * pixels)))


def load_inputs(
    images: Images, prepare: Preparation, indices: Sequence[int], *, pixels: int, workers: int
) -> Generator[Inputs, None, None]:
    """Yields the inputs of the images at `indices`, in this order.

    Close it to end its workers. Otherwise, after a worker died, torch raises in this process each time any child exits.

    Args:
        images: the images.
        prepare: makes the tensors of a decoded image, in a loader process or thread.
        indices: of the images to load.
        pixels: an estimate of the pixels in the tensors of one image.
        workers: loader processes, which load ahead; 0 loads in threads of this process, only while it waits for inputs.
    """
    inputs, batch_size = ImageInputs(images, prepare), loader_batch_size(pixels)
    if workers:
        yield from _load_in_processes(inputs, indices, batch_size, workers)
    else:
        yield from _load_in_threads(inputs, indices, batch_size)


def _load_in_processes(
    inputs: ImageInputs, indices: Sequence[int], batch_size: int, workers: int
) -> Generator[Inputs, None, None]:
    loader = WatchedLoader(
        inputs,
        batch_size=batch_size,
        sampler=list(indices),
        collate_fn=pack,
        num_workers=workers,
        worker_init_fn=start_loader_worker,
    )
    batches = iter(loader)
    try:
        for packed in batches:
            yield from unpack(packed)
    finally:
        batches._shutdown_workers()  # type: ignore[attr-defined]


def _load_in_threads(inputs: ImageInputs, indices: Sequence[int], batch_size: int) -> Generator[Inputs, None, None]:
    """Loads the next batch of every thread at once, in as many threads as torch has, and yields their inputs."""
    threads = torch.get_num_threads()
    step = threads * batch_size
    try:
        # Decoding and resizing release the GIL; with threads of torch's own in each of these there would be too many.
        with ThreadPoolExecutor(threads, initializer=compute_in_one_thread) as pool:
            for start in range(0, len(indices), step):
                # Decoding changes the filters of warnings, which all threads share, and restores them in any order.
                with warnings.catch_warnings():
                    loaded = [pool.submit(inputs.__getitem__, index) for index in indices[start : start + step]]
                    wait(loaded)
                yield from (future.result() for future in loaded)
    finally:
        torch.set_num_threads(threads)  # for threads to come; that of this one has not changed


def compute_in_one_thread() -> None:
    """Makes torch compute in this thread alone, for whatever runs in it later."""
    torch.get_num_threads()  # a thread's first call takes the number of other threads; the next one decides
    torch.set_num_threads(1)


def load_groups(
    images: Images, prepare: Preparation, indices: Sequence[int], *, pixels: int, per_pass: int, workers: int
) -> Generator[list[Inputs], None, None]:
    """Yields the inputs of the images at `indices` in groups of equal shapes, in an order that brings these together.

    A group holds as many images as have `per_pass` pixels together in their largest tensors, at least one. Groups are
    smaller at the end, and when the images that wait for others exceed MAX_WAITING_BYTES.

    Use it inside `explained_loader_failures`, and close it. The other arguments are those of `load_inputs`.
    """
    with closing(load_inputs(images, prepare, indices, pixels=pixels, workers=workers)) as arriving:
        yield from _groups(arriving, per_pass)


def images_per_pass(inputs: Inputs, per_pass: int) -> int:
    """Returns how many images like this one have `per_pass` pixels in their largest tensors, at least 1."""
    return max(1, 3 * per_pass // max(tensor.numel() for tensor in inputs.tensors))


def _groups(arriving: Iterator[Inputs], per_pass: int) -> Iterator[list[Inputs]]:
    waiting: dict[tuple[Any, ...], list[Inputs]] = {}
    waiting_bytes = 0
    for inputs in arriving:
        shapes = tuple(tensor.shape for tensor in inputs.tensors)
        group = waiting.setdefault(shapes, [])
        group.append(inputs)
        waiting_bytes += inputs.nbytes

        full = shapes if len(group) >= images_per_pass(inputs, per_pass) else None
        if full is None and waiting_bytes > MAX_WAITING_BYTES:  # the group that takes the most memory goes first
            full = max(waiting, key=lambda key: len(waiting[key]) * waiting[key][0].nbytes)
        if full is not None:
            group = waiting.pop(full)
            waiting_bytes -= len(group) * group[0].nbytes
            yield group
    yield from waiting.values()
