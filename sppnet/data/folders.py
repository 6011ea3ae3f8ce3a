"""Data sets in folders of image files: class folders, ImageNet, Caltech101, and the drawn shapes."""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sppnet.data.file_names import check_class_pattern, check_lists, check_several_classes, files_by_pattern, read_list
from sppnet.data.image_files import (
    IMAGE_SUFFIXES,
    ImageFiles,
    chosen_parts,
    of_classes,
    select_files,
    shuffled_classes,
    split_by_fraction,
)
from sppnet.data.shapes import generate_shapes
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.names import counted, is_utf8, listing, printable

# The sources. Each returns (training images, validation images). With `classes`, these are the images that it has of
# those classes without it, labelled from 0 in the order of the data set.

_VAL_FOLDERS = ("val", "validation", "test")


def shapes(
    *, root: str, train: int = 2000, val: int = 500, seed: int = 0, classes: list[str] | None = None
) -> tuple[ImageFiles, ImageFiles]:
    """`train` and `val` images of `sppnet.data.shapes`, drawn into `root` on first use.

    `train` and `val` count the images of all classes; `classes` selects those of some. Raises as `of_classes`.
    """
    return of_classes(_train_and_val(generate_shapes(Path(root), train=train, val=val, seed=seed), "val"), classes)


def folder(
    *,
    root: str,
    class_pattern: str | None = None,
    train_list: str | None = None,
    val_list: str | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    classes: list[str] | None = None,
) -> tuple[ImageFiles, ImageFiles]:
    r"""One folder per class in `root`/train and `root`/val (or validation, or test), or in `root` itself.

    Class folders may hold folders; hidden files and folders are left out. Warns if `root` has several of val,
    validation and test: the first one is used. With `class_pattern`, classes are in the names of files, and folders in
    train, val or `root` mean nothing. With `train_list`, images are those of the lists, and other files are ignored.

    Args:
        root: the folder.
        class_pattern: a regular expression whose one group finds the class in the name of a file, as in
            `files_by_pattern`; None: classes are folders.
        train_list: a text file of the images to train on, as `read_list` takes it.
        val_list: one of the images to validate on.
        val_fraction: without a val folder or val_list, the share of every class that becomes val; None: 0.2 if there is
            no train folder or train_list either, else an error.
        split_seed: decides, together with the names of the files, which images become val.
        classes: only the images of these; None: all.
    """
    top = existing_folder(Path(root))
    if train_list is not None or val_list is not None:
        return _listed(top, class_pattern, train_list, val_list, val_fraction, split_seed, classes)
    has_train = (top / "train").is_dir()
    val_folder, *unused = val_folders(top) or [""]
    if val_folder and not has_train:
        raise ValueError(f"{top}: found {val_folder}/, expected train/ beside it")
    if val_folder and val_fraction is not None:
        raise ValueError(f"{top}: found {val_folder}/, val_fraction={val_fraction} is for folders without it")

    if val_folder:
        if unused:
            warnings.warn(
                f"{top}: validation uses {val_folder}/, not {', '.join(f'{name}/' for name in unused)}; test on it by "
                f"{shown_command('evaluate')} data=folder data.root={top / unused[-1]} part=all",
                stacklevel=2,
            )
        if class_pattern is not None:
            train, val = (_read_images(top, part, class_pattern) for part in ("train", val_folder))
            return chosen_parts(train, val, classes)
        return of_classes(_train_and_val(top, val_folder), classes)

    if has_train and val_fraction is None:
        raise ValueError(f"{top}: found train/, expected val/ beside it, or val_fraction=0.2 to split train/")
    images = _read_images(top, "train" if has_train else "", class_pattern)
    return _split(images, val_fraction, split_seed, classes)


def _split(
    images: ImageFiles, val_fraction: float | None, seed: int, classes: list[str] | None
) -> tuple[ImageFiles, ImageFiles]:
    images, _ = of_classes((images, images), classes)  # before they are split: others may have too few images for it
    return split_by_fraction(images, 0.2 if val_fraction is None else val_fraction, seed)


def _listed(
    top: Path,
    class_pattern: str | None,
    train_list: str | None,
    val_list: str | None,
    val_fraction: float | None,
    split_seed: int,
    classes: list[str] | None,
) -> tuple[ImageFiles, ImageFiles]:
    """The images that text files list."""
    if train_list is None:
        raise ValueError(f"val_list={val_list}: needs train_list=FILE beside it")
    if (val_list is None) == (val_fraction is None):
        found = "both val_list and val_fraction" if val_list else "neither val_list nor val_fraction"
        raise ValueError(f"train_list={train_list}: found {found}, expected one of them")
    train = read_list(top, train_list, class_pattern)
    check_several_classes(train.classes, len(train), str(top / train_list))
    if val_list is None:
        return _split(train, val_fraction, split_seed, classes)
    val = read_list(top, val_list, class_pattern)
    check_lists(train, val, str(top / val_list))
    return chosen_parts(train, val, classes)


def unsplit_folder(
    *, root: str, class_pattern: str | None = None, classes: list[str] | None = None
) -> tuple[ImageFiles, ImageFiles]:
    """All images of `root`, which has one folder per class, and no validation images: to test on all of them."""
    images = _read_images(existing_folder(Path(root)), "", class_pattern)
    nothing = ImageFiles(images.root, images.paths[:0], images.labels[:0], images.classes)
    return of_classes((images, nothing), classes)


def val_folders(top: Path) -> list[str]:
    """Those of val, validation and test that are folders in `top`, in this order; `folder` validates on the first."""
    return [name for name in _VAL_FOLDERS if (top / name).is_dir()]


ILSVRC_2012 = (1_281_167, 50_000)  # numbers of training and validation images


def imagenet(*, root: str) -> tuple[ImageFiles, ImageFiles]:
    """ILSVRC 2012 in `root`/train and `root`/val, each with 1000 folders named by WordNet id, such as n01440764."""
    top = existing_folder(Path(root))
    for split in ("train", "val"):
        _check_wordnet_folders(existing_folder(top / split))
    return _train_and_val(top, "val")


def caltech101(
    *,
    root: str,
    split_seed: int = 0,
    train_per_class: int = 30,
    test_per_class: int = 50,
    classes: list[str] | None = None,
) -> tuple[ImageFiles, ImageFiles]:
    """Caltech101, 102 categories with the background: 30 random images of each to train, up to 50 others to test.

    The protocol of arXiv:1406.4729v4, 3.3, which averages 10 splits. Names are paths from 101_ObjectCategories.

    Args:
        root: 101_ObjectCategories or the folder that holds it.
        split_seed: decides, together with the names of the files, which images are chosen.
        train_per_class: images of each category to train on.
        test_per_class: the most images of each category to test on.
        classes: only the images of these categories; None: all.
    """
    top = existing_folder(Path(root))
    nested = top / "101_ObjectCategories"
    images = _read_classes(nested if nested.is_dir() else top, "")
    if len(images.classes) != 102:
        raise ValueError(
            f"{images.root}: found {counted(len(images.classes), 'class folder')}, expected Caltech101's 102"
        )

    train, test = [], []
    for name, members in shuffled_classes(images, split_seed):
        if not 0 < train_per_class < len(members) or test_per_class < 1:
            raise ValueError(
                f"{images.root}: {name} has {counted(len(members), 'image')}, "
                f"train_per_class={train_per_class} and test_per_class={test_per_class} need one each at least"
            )
        train.append(members[:train_per_class])
        test.append(members[train_per_class : train_per_class + test_per_class])
    return of_classes((select_files(images, train), select_files(images, test)), classes)


# Reading folders.


def _train_and_val(top: Path, val_folder: str) -> tuple[ImageFiles, ImageFiles]:
    return _read_classes(top, "train"), _read_classes(top, val_folder)


def _read_images(top: Path, split: str, class_pattern: str | None) -> ImageFiles:
    """The images in `top`/`split`, with the classes that `class_pattern` finds in names, or of class folders."""
    if class_pattern is None:
        return _read_classes(top, split)
    check_class_pattern(class_pattern)
    paths = list(image_paths(top / split, split))
    if not paths:
        raise ValueError(f"{top / split}: found no images, expected files such as *.jpg")
    images = files_by_pattern(str(top), paths, class_pattern)
    if split in ("", "train"):
        check_several_classes(images.classes, len(images), f"{top}: class_pattern={class_pattern}")
    return images


def _read_classes(top: Path, split: str) -> ImageFiles:
    """The images in the class folders of `top`/`split`, or of `top` for "", sorted by class, then by path."""
    base = top / split
    classes = _class_folders(base)
    # A single folder in `top` itself is more likely another level of folders than a class.
    if len(classes) < (1 if split else 2):
        expected = "a folder for each class" if split else "a folder for each of two or more classes"
        raise ValueError(f"{base}: found {_contents(base)}, expected {expected}")

    paths, counts = [], []
    for name in classes:
        if not is_utf8(name):
            raise ValueError(printable(f"{base / name}: the name of a class must be UTF-8; rename the folder"))
        paths_of_class = sorted(image_paths(base / name, f"{split}/{name}" if split else name))
        if not paths_of_class:
            raise ValueError(f"{base / name}: found no images, expected files such as *.jpg")
        paths += [os.fsencode(path) for path in paths_of_class]
        counts.append(len(paths_of_class))
    return ImageFiles(str(top), np.array(paths), np.repeat(np.arange(len(classes)), counts), tuple(classes))


def _class_folders(base: Path) -> list[str]:
    """The names of the folders in `base`, sorted, without hidden ones."""
    with os.scandir(base) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one. Broken and circular links are not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def image_paths(place: Path | str, prefix: str = "") -> Iterator[str]:
    """Yields `prefix`/path of each image under `place`. Does not follow links to folders, which may be circular.

    Without a prefix, paths are those from `place`. Hidden files and folders are left out, and files of other suffixes.
    """
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from image_paths(entry.path, path)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield path


def _contents(base: Path) -> str:
    """Describes a folder that should hold class folders, for an error message."""
    with os.scandir(base) as entries:
        images = sum(entry.name.lower().endswith(IMAGE_SUFFIXES) and not _is_folder(entry) for entry in entries)
    return f"{counted(images, 'image')} lying flat and the folders: {listing(_class_folders(base)) or 'none'}"


def existing_folder(path: Path) -> Path:
    """The path itself if it is a folder. Raises FileNotFoundError or ValueError otherwise."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such folder")
    if not path.is_dir():
        raise ValueError(f"{path}: found a file, expected a folder")
    return path


def _check_wordnet_folders(base: Path) -> None:
    """Raises ValueError unless `base` has 1000 folders named by WordNet id."""
    names = _class_folders(base)
    if not names and any(base.glob("ILSVRC2012_*")):
        raise ValueError(
            f"{base}: found {_contents(base)}, expected 1000 folders such as n01440764: move each image into the "
            "folder of its class, as the ground truth file says (valprep.sh does it for the validation images)"
        )
    if len(names) != 1000:
        raise ValueError(f"{base}: found {counted(len(names), 'class folder')}, expected 1000")
    others = [name for name in names if not re.fullmatch(r"n\d{8}", name)]
    if others:
        raise ValueError(f"{base}: found the folders {listing(others)}, expected WordNet ids such as n01440764")
