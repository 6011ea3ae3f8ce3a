"""Decoded images: the memory they take, and a cache of them on disk that loader processes share."""

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sppnet.data.images import Images, UnreadableImage, encoded_image_size
from sppnet.geometry import size_at_shorter_side

# The file is divided evenly among the images, mostly into holes, which take no space. Ext4 allows no larger file if its
# blocks are small, and 16 TB by default.
FILE_BYTES = (1 << 42) - (1 << 20)
_BLOCK_BYTES = 512  # the unit in which stat counts, whatever the blocks of the file system are
_PAGE_BYTES = 4096  # that most file systems allocate at once
_RESERVE = 10  # one part of so many of the disk that is free at the beginning stays free: checkpoints need it too
_SIDES = 1 << 31  # a side in pixels is below this
_SAMPLE = 64  # images, of which the mean size is estimated


def mean_pixels(images: Images, shorter_side: int | None = None) -> float:
    """Estimates the mean number of pixels of decoded images from the headers of some of them.

    Args:
        images: encoded images, at least one. Those that cannot be read do not count.
        shorter_side: to which images are resized, in pixels; None: they keep their size.
    """
    counts = []
    for index in np.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).astype(int).tolist():
        try:
            height, width = encoded_image_size(images.read(index), images.name(index))
        except UnreadableImage:
            continue
        if shorter_side is not None:
            height, width = size_at_shorter_side(height, width, shorter_side)
        counts.append(height * width)
    return float(np.mean(counts)) if counts else 0.0


def bytes_on_disk(pixels: float) -> int:
    """Returns the bytes that an image of so many pixels takes in a PixelCache: whole blocks of the file system."""
    return math.ceil(3 * pixels / _PAGE_BYTES) * _PAGE_BYTES


class PixelCache:
    """A cache of decoded images in a temporary file without a name, which ends with the last process that has it open.

    Processes that are forked afterwards share the cache; in processes that are spawned it stays empty. It never fails:
    what does not fit, or cannot be written, is not kept.

    Args:
        images: how many there are.
        limit: bytes on disk above which nothing more is kept.
    """

    def __init__(self, images: int, limit: int) -> None:
        self.limit = limit
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._file)
        self._reserve = self._free_bytes() // _RESERVE
        # Bytes from the start of one image to that of the next, whole pages.
        self._slot = FILE_BYTES // max(1, images) // _PAGE_BYTES * _PAGE_BYTES
        # Height and width of every image that is kept, in one number, because other processes must not see one without
        # the other; zeros of the other images. Written after the pixels.
        self._sizes = np.frombuffer(mmap.mmap(-1, max(1, images) * 8), np.int64)

    def __reduce__(self) -> tuple[type["PixelCache"], tuple[int, int]]:
        return PixelCache, (len(self._sizes), 0)

    def close(self) -> None:
        """Gives the disk back, once loader processes have ended, too. Nothing is kept afterwards."""
        self._sizes[:] = self.limit = 0
        self._close()

    @property
    def nbytes(self) -> int:
        """The bytes that the images take on disk."""
        return os.fstat(self._file).st_blocks * _BLOCK_BYTES

    def _free_bytes(self) -> int:
        disk = os.fstatvfs(self._file)
        return disk.f_bavail * disk.f_frsize

    def get(self, index: int) -> Tensor | None:
        """Returns a copy of an image, uint8 (3, h, w) in channels-last; None if it is not kept."""
        height, width = divmod(int(self._sizes[index]), _SIDES)
        if not height:
            return None
        pixels = torch.empty(height, width, 3, dtype=torch.uint8)
        # Not through a memory map, whose page faults take twice as long as the copy.
        read = os.preadv(self._file, [pixels.numpy().data], index * self._slot)
        return pixels.permute(2, 0, 1) if read == pixels.numel() else None

    def put(self, index: int, image: Tensor) -> None:
        """Keeps an image, uint8 (3, h, w), unless it is larger than its part of the file, or cache or disk are full."""
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        if not 0 < pixels.nbytes <= min(self._slot, self.limit) or self.nbytes + pixels.nbytes > self.limit:
            return
        if self._free_bytes() - pixels.nbytes < self._reserve:
            return
        try:
            written = os.pwrite(self._file, pixels.data, index * self._slot)
        except OSError:  # the disk is full, or the file may not grow
            self.limit = 0
            return
        if written == pixels.nbytes:  # a full disk may take a part
            height, width = image.shape[1:]
            self._sizes[index] = height * _SIDES + width


def cached(cache: PixelCache | None, index: int, load: Callable[[int], Tensor]) -> Tensor:
    """Returns an image from the cache, or loads it and keeps it there. Without a cache, it is always loaded."""
    if cache is None:
        return load(index)
    image = cache.get(index)
    if image is None:
        image = load(index)
        cache.put(index, image)
    return image
