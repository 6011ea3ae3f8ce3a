"""Image files of no data set: those that the user names, and reading them ahead in threads."""

import glob
import hashlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sppnet.data.folders import image_paths
from sppnet.data.image_files import IMAGE_SUFFIXES, NamedFiles
from sppnet.data.images import MAX_FILE_BYTES, UnreadableImage, decode_image, encoded_image_size
from sppnet.data.inputs import compute_in_one_thread

STANDARD_INPUT = "-"
_LONGEST_NAME = 4096  # bytes, on Linux
# How images begin that may be too damaged for their header to be read, and names of files hardly ever.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")

Prepared = TypeVar("Prepared")


class Photos(Protocol):
    """Image files by index, from 0."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Returns the content of a file. Raises UnreadableImage if it cannot be read."""

    def name(self, index: int) -> str:
        """Returns the name of a file."""

    def digest(self) -> str:
        """Returns a hash that changes with the files: with their names, sizes and times of change."""


class PhotoFiles(NamedFiles):
    """Image files that the user names."""

    def digest(self) -> str:
        """Returns a hash of the names, sizes and times of change of the files."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            name = self.name(index)
            path = Path(self.root, name)
            try:
                status = path.stat()
                known = (status.st_size, status.st_mtime_ns)
            except OSError:
                known = (0, 0)
            digest.update(f"{str(path.absolute())!r} {name!r} {known}\n".encode())
        return digest.hexdigest()


class OneImage:
    """A single image that was read from standard input, with the name "-"."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> bytes:
        """Returns the content of the image."""
        return self.encoded

    def name(self, index: int) -> str:
        """Returns "-"."""
        return STANDARD_INPUT

    def digest(self) -> str:
        """Returns a hash of the content."""
        return hashlib.sha256(self.encoded).hexdigest()


def find_photos(places: str | Sequence[str]) -> Photos:
    """Finds the image files that a place names, or several places in their order.

    A place is a file, a folder with everything below it, a pattern, in which ** stands for any folders and which may
    match folders too, or "-" for standard input: names of files, one per line (or with a zero byte after each), or a
    single image. The files of a folder or pattern are sorted by name. A file that is named by itself may have any
    suffix.

    Names of a folder's files are paths from it, those of a pattern's from its last folder without a wildcard; those of
    several places begin with the place. A file that several places name is taken once; names from standard input are
    taken as they come, existing or not.

    Raises FileNotFoundError if there is no such file or folder, and ValueError for a folder without images.
    """
    if isinstance(places, str):
        return _photos_on_standard_input() if places == STANDARD_INPUT else _files_in(places)
    if STANDARD_INPUT in places:
        raise ValueError(f"images={list(places)}: - is for standard input, and cannot be one of several places")
    found = [files for place in places for files in _paths(_files_in(place))]
    return PhotoFiles("", np.array([os.fsencode(path) for path in dict.fromkeys(found)]))


def _paths(files: PhotoFiles) -> Iterator[str]:
    # Not normalized: behind a link to a folder, .. is not the folder before it in the path.
    root = "" if files.root == "." else files.root
    for index in range(len(files)):
        yield os.path.join(root, files.name(index))


def _files_in(place: str) -> PhotoFiles:
    """Finds the files of one place."""
    path = Path(place)
    if path.is_file():
        return PhotoFiles(str(path.parent), np.array([os.fsencode(path.name)]))
    top = path if path.is_dir() else _folder_without_wildcards(path)
    found = sorted(set(image_paths(top) if top == path else _matches(place, top)))
    if found:
        return PhotoFiles(str(top), np.array([os.fsencode(name) for name in found]))
    if not glob.glob(place, recursive=True):
        raise FileNotFoundError(f"images={place}: there is no such file or folder, and no file matches")
    raise ValueError(f"images={place}: no images there, expected files such as {', '.join(IMAGE_SUFFIXES[:5])}")


def _folder_without_wildcards(pattern: Path) -> Path:
    """Returns the last folder of a pattern before its first wildcard."""
    top = pattern.parent
    while glob.has_magic(str(top)) or not top.is_dir():
        top = top.parent
    return top


def _matches(pattern: str, top: Path) -> Iterator[str]:
    """Yields the paths from `top` of the images that a pattern matches, and of those below folders that it matches."""
    for match in glob.glob(pattern, recursive=True):
        name = os.path.relpath(match, top)
        if Path(match).is_dir():
            yield from image_paths(match, "" if name == "." else name)
        elif name.lower().endswith(IMAGE_SUFFIXES):
            yield name


def _photos_on_standard_input() -> Photos:
    if sys.stdin is None:
        raise ValueError("images=-: standard input is closed")
    return photos_in(sys.stdin.buffer)


def photos_in(stream: BinaryIO) -> Photos:
    """Reads an image, or names of image files, from a stream up to its end.

    Raises ValueError for a terminal, which would be waited for, and for a stream that holds neither.
    """
    if stream.isatty():
        raise ValueError("images=-: standard input is a terminal; pipe the names of files, or an image, into it")
    content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"images=-: more than {MAX_FILE_BYTES:,} bytes on standard input")
    if _is_image(content):
        return OneImage(content)
    names = [name.removesuffix(b"\r") for name in content.split(b"\0" if b"\0" in content else b"\n")]
    names = [name for name in names if name]
    if not names:
        raise ValueError("images=-: standard input is empty; pipe the names of files, or an image, into it")
    if max(map(len, names)) > _LONGEST_NAME or 2 * sum(map(_has_control_characters, names)) > len(names):
        raise ValueError("images=-: found neither an image that can be read nor names of files on standard input")
    return PhotoFiles("", np.array(names))


def _has_control_characters(name: bytes) -> bool:
    return any(byte < 32 for byte in name)


def _is_image(content: bytes) -> bool:
    if content.startswith(_BEGINNINGS):
        return True
    try:
        encoded_image_size(content, STANDARD_INPUT)
    except UnreadableImage:
        return False
    return True


def read_ahead(
    photos: Photos,
    prepare: Callable[[Tensor, str], Prepared],
    *,
    threads: int,
    ahead: int | None = None,
    start: int = 0,
) -> Generator[tuple[str, Future[Prepared]], None, None]:
    """Yields the name of every photo in order, and what `prepare` makes of it, while threads read the next ones.

    Results raise UnreadableImage for a photo that cannot be read, and what `prepare` raises. Close it to end its
    threads.

    Args:
        photos: the files.
        prepare: called in a thread with the image, uint8 (3, h, w), and its name.
        threads: that read and prepare photos.
        ahead: how many photos are read before they are taken; None: as many as there are threads.
        start: index of the first photo.
    """

    def read(index: int, name: str) -> Prepared:
        return prepare(decode_image(photos.read(index), name), name)

    waiting: deque[tuple[str, Future[Prepared]]] = deque()
    # Decoding changes the filters of warnings, which all threads share, and restores them in any order.
    with warnings.catch_warnings():
        own_threads = torch.get_num_threads()
        # Decoding and resizing release the GIL; with threads of torch's own in each of these there would be too many.
        pool = ThreadPoolExecutor(threads, initializer=compute_in_one_thread)
        try:
            for index in range(start, len(photos)):
                name = photos.name(index)
                waiting.append((name, pool.submit(read, index, name)))
                if len(waiting) > (ahead or threads):
                    yield waiting.popleft()
            yield from waiting
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(own_threads)  # for threads to come; that of this one has not changed
