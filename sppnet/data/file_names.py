"""Image files whose classes are in their names, and images that text files list."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sppnet.data.image_files import IMAGE_SUFFIXES, ImageFiles, file_keys, missing_files, sorted_files
from sppnet.runtime.names import counted, is_utf8, listing, printable


def check_class_pattern(pattern: str) -> None:
    """Raises ValueError unless it is a regular expression with one group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"class_pattern={pattern}: is no regular expression ({error})") from error
    if groups != 1:
        hint = "(...) around the part that is the class, and (?:...) for other groups"
        raise ValueError(f"class_pattern={pattern}: has {groups} groups, expected one: {hint}")


def files_by_pattern(root: str, paths: Iterable[str], pattern: str) -> ImageFiles:
    r"""Returns image files with the classes that a pattern finds in their names, without their folders.

    Args:
        root: the folder that `paths` start from.
        paths: of the files, one or more.
        pattern: as `check_class_pattern` allows, and found anywhere in a name: ^(n\d+)_ finds
            n01440764 in n01440764_tench.jpg.

    Raises ValueError for names in which it finds no class.
    """
    check_class_pattern(pattern)
    paths = sorted(paths)
    found = [re.search(pattern, path.rpartition("/")[2]) for path in paths]
    classes = [match[1] if match else None for match in found]
    if without := [path for path, name in zip(paths, classes, strict=True) if not name]:
        line = f"{root}: class_pattern={pattern} finds no class in {len(without):,} of {len(paths):,} names: "
        raise ValueError(printable(line) + listing(without))
    return _files_of_classes(root, paths, [str(name) for name in classes], f"class_pattern={pattern}")


def read_list(root: Path, name: str, pattern: str | None) -> ImageFiles:
    """Reads a text file that lists images, one on each line, as paths from `root`; suffixes may be left out.

    Args:
        root: the folder of the images.
        name: of the text file: a path from `root`, or an absolute one.
        pattern: finds the class, as in `files_by_pattern`; None: the first folder of the path, after train/, val/,
            validation/ or test/, is the class.

    Raises FileNotFoundError or ValueError, with the line, for a missing file, an image that is no file or is listed
    twice, and one without a class.
    """
    file = root / name
    if not file.is_file():
        hint = f"; give {Path(name).absolute()}" if Path(name).is_file() else ""
        raise FileNotFoundError(printable(f"{file}: there is no such file{hint}"))
    lines = _numbered_lines(file)
    if not lines:
        raise ValueError(f"{file}: lists no images")

    existing = _existing(file, str(root), lines)
    paths = [os.fsdecode(path) for path in existing.tolist()]
    place_of: dict[bytes, int] = {}
    for (number, _), path, key in zip(lines, paths, file_keys(str(root), existing).tolist(), strict=True):
        if key in place_of:
            raise ValueError(printable(f"{file}:{number}: found {path} a second time, after line {place_of[key]}"))
        place_of[key] = number
    if pattern is not None:
        return files_by_pattern(str(root), paths, pattern)
    classes = [_class_folder(path, f"{file}:{number}") for (number, _), path in zip(lines, paths, strict=True)]
    return _files_of_classes(str(root), paths, classes, str(file))


def check_several_classes(classes: Sequence[str], images: int, place: str) -> None:
    """Raises ValueError if the training images, so many, are all of one class: nothing is learned from them."""
    if len(classes) < 2:
        found = f"found only the class {classes[0]} in {counted(images, 'training image')}"
        raise ValueError(printable(f"{place}: {found}, expected two or more"))


def check_lists(train: ImageFiles, val: ImageFiles, val_list: str) -> None:
    """Raises ValueError for an image that both parts have."""
    shared = np.flatnonzero(np.isin(file_keys(val.root, val.paths), file_keys(train.root, train.paths)))
    if shared.size:
        count = f"{shared.size:,} images" if shared.size > 1 else "an image"
        raise ValueError(printable(f"{val_list}: lists {count} of train_list too, such as {val.name(int(shared[0]))}"))


def _numbered_lines(file: Path) -> list[tuple[int, str]]:
    """Returns the number, from 1, and the text of every line that is not blank."""
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # names of files may be any bytes
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _existing(file: Path, root: str, lines: Sequence[tuple[int, str]]) -> np.ndarray:
    """Returns the paths of listed images, (n,) of bytes, with the suffixes that the list leaves out."""
    names = [str(Path(line)) for _, line in lines]
    paths = np.array([os.fsencode(name) for name in names])
    missing = missing_files(root, paths)
    if missing.size:
        completed = _with_suffixes(root, [names[i] for i in missing])
        paths = np.array([os.fsencode(completed.get(name, name)) for name in names])
        missing = missing_files(root, paths)
    if missing.size:
        number, line = lines[missing[0]]
        count = f"no file for {missing.size:,} of {counted(len(lines), 'line')}"
        raise FileNotFoundError(printable(f"{file}:{number}: there is no {line} in {root} ({count})"))
    return paths


def _with_suffixes(root: str, names: Sequence[str]) -> dict[str, str]:
    """Returns the paths of those names that are paths of images without their suffix."""
    found: dict[str, str] = {}
    for folder in {os.path.dirname(name) for name in names}:
        place = Path(root, folder)
        is_folder = os.path.isdir(place)  # noqa: PTH112, as Path.is_dir raises for names that are too long
        for file in sorted(place.iterdir(), reverse=True) if is_folder else ():
            if file.suffix.lower() in IMAGE_SUFFIXES:  # a.jpg comes after a.png, and takes its place
                found[os.path.join(folder, file.stem)] = os.path.join(folder, file.name)
    return found


_PARTS = ("train", "val", "validation", "test")


def _class_folder(path: str, place: str) -> str:
    """Returns the folder that is the class of a listed image."""
    folders = path.split("/")[:-1]
    if folders and folders[0] in _PARTS:
        folders = folders[1:]
    if not folders or folders[0] in ("", ".."):
        line = f"{place}: {path} is in no folder of a class; class_pattern= takes classes from names of files"
        raise ValueError(printable(line))
    return folders[0]


def _files_of_classes(root: str, paths: Sequence[str], classes: Sequence[str], place: str) -> ImageFiles:
    """Returns image files with the names of their classes. Raises ValueError for a name that is no text."""
    code_of: dict[str, int] = {}
    codes = np.array([code_of.setdefault(name, len(code_of)) for name in classes], np.int64)
    if wrong := [name for name in code_of if not is_utf8(name)]:
        raise ValueError(printable(f"{place}: the name of a class must be UTF-8, and is {wrong[0]}"))
    return sorted_files(root, np.array([os.fsencode(path) for path in paths]), codes, list(code_of))
