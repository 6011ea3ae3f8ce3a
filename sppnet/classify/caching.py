"""Decides whether a training run keeps decoded images, and how much of the disk they may take."""

import shutil
import tempfile
from typing import NamedTuple

from sppnet.classify.loading import shorter_side_for
from sppnet.data.images import Images, UnreadableImage, is_encoded_pixels
from sppnet.data.pixels import PixelCache, bytes_on_disk, mean_pixels
from sppnet.data.sources import ImageData
from sppnet.runtime.machine import memory_bytes

_WORTH_A_LINE = 10**8  # bytes
_SHARE = 4  # at most one part of so many of the memory and of the free disk is taken, unless the user gives a number


class Caching(NamedTuple):
    """How many bytes on disk the decoded images of one training process may take. At 0 none are kept."""

    training: int
    validation: int
    expected: int  # of both together, as far as it can be known without decoding all images

    def note(self, processes: int = 1) -> str | None:
        """Returns a line for the user about so many processes that each keep as much; None if it is not worth one."""
        if processes * self.expected < _WORTH_A_LINE:
            return None
        files = "a temporary file" if processes == 1 else f"{processes} temporary files, one per process,"
        return (
            f"decoded images are kept in {files} in {tempfile.gettempdir()}, of about "
            f"{processes * self.expected / 1e9:.2g} GB; trainer.cache=0 keeps none"
        )

    def caches(self, data: ImageData) -> tuple[PixelCache | None, PixelCache | None]:
        """Returns new caches of the training and of the validation images; None where none are kept."""
        return (
            PixelCache(len(data.train), self.training) if self.training else None,
            PixelCache(len(data.val), self.validation) if self.validation else None,
        )


NO_CACHING = Caching(0, 0, 0)


def plan_caching(setting: float | str, data: ImageData, *, side: int, random_crop: bool, processes: int) -> Caching:
    """Decides by the setting `trainer.cache`, or for "auto" by the expected size of the decoded images.

    Automatically all images are kept, if they fit into a quarter of the memory and of the free disk, or none: an epoch
    reads every image once, so a part would gain little.

    Args:
        setting: "auto", or a limit in gigabytes.
        data: the images.
        side: of the crops in pixels.
        random_crop: whether crops are random windows of whole images, which are then kept at their full size.
        processes: training processes on this machine, each of which keeps all images.
    """
    limit = (_share_of_this_machine() if setting == "auto" else int(1e9 * float(setting))) // processes
    validation = bytes_on_disk(side * side) * len(data.val)
    if not limit or (setting == "auto" and validation > limit):  # before files of a large data set are read
        return NO_CACHING

    training = _training_bytes(data.train, side, random_crop)
    if setting == "auto":
        return NO_CACHING if training + validation > limit else _limits(limit, training, validation)
    return _limits(limit, training, min(limit, validation))


def _limits(limit: int, training: int, validation: int) -> Caching:
    """Shares a limit: the size of the validation images is known, and training images get the rest."""
    rest = limit - validation if training else 0
    return Caching(rest, validation, min(limit, training + validation))


def _share_of_this_machine() -> int:
    return min(memory_bytes(), shutil.disk_usage(tempfile.gettempdir()).free) // _SHARE


def _training_bytes(images: Images, side: int, random_crop: bool) -> int:
    """Estimates the bytes of all training images as they are kept; 0 for a store that has them decoded already."""
    try:
        if is_encoded_pixels(images.read(0)):
            return 0
    except UnreadableImage:  # the next may be readable
        pass

    shorter_side = None if random_crop else shorter_side_for(side)
    return bytes_on_disk(mean_pixels(images, shorter_side)) * len(images)
