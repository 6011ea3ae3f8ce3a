"""Image files of no data set, named by a path or a pattern."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sppnet.data.folders import IMAGE_SUFFIXES, NamedFiles, image_paths


def find_photos(place: str) -> NamedFiles:
    """Finds image files: one file, all those below a folder, or those that a pattern matches; sorted by name.

    Names are paths from the folder; with a pattern, from its last folder without a wildcard. A pattern may match
    folders too, and ** stands for any folders. A file that is named by itself may have any suffix.

    Raises FileNotFoundError if there is no such file or folder, and ValueError for a folder without images.
    """
    path = Path(place)
    if path.is_file():
        return NamedFiles(str(path.parent), np.array([os.fsencode(path.name)]))
    top = path if path.is_dir() else _folder_without_wildcards(path)
    found = sorted(set(image_paths(top) if top == path else _matches(place, top)))
    if found:
        return NamedFiles(str(top), np.array([os.fsencode(name) for name in found]))
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
