"""Data sets in folders of image files: class folders, ImageNet, Caltech101, and the drawn shapes."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import compress
from pathlib import Path

import numpy as np

from sppnet.data.images import read_image_file
from sppnet.data.shapes import generate_shapes
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.names import is_utf8, listing, printable


@dataclass(frozen=True, eq=False)
class NamedFiles:
    """Image files under `root`; a name is the path from there, with slashes. With root "", from the current folder."""

    root: str
    paths: np.ndarray  # (n,) of bytes: one array, not a Python object per image

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        name = self.name(index)
        return read_image_file(os.path.join(self.root, name), name)

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])


@dataclass(frozen=True, eq=False)
class ImageFiles(NamedFiles):
    """Image files with one label each."""

    labels: np.ndarray  # int64 (n,)
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """A hash of names and labels, not of the contents of the files, because reading them takes long."""
        return files_fingerprint(self.paths, self.labels, self.classes)


def files_fingerprint(paths: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> str:
    """A hash of the names and labels of image files."""
    digest = hashlib.sha256("\0".join(classes).encode())
    digest.update(b"\0".join(paths.tolist()))
    digest.update(labels.tobytes())
    return digest.hexdigest()


# The sources. Each returns (training images, validation images). With `classes`, these are the images that it has of
# those classes without it, labelled from 0 in the order of the data set.

_VAL_FOLDERS = ("val", "validation", "test")


def shapes(
    *, root: str, train: int = 2000, val: int = 500, seed: int = 0, classes: list[str] | None = None
) -> tuple[ImageFiles, ImageFiles]:
    """`train` and `val` images of `sppnet.data.shapes`, drawn into `root` on first use.

    `train` and `val` count the images of all classes; `classes` selects those of some. Raises as `_of_classes`.
    """
    return _of_classes(_train_and_val(generate_shapes(Path(root), train=train, val=val, seed=seed), "val"), classes)


def folder(
    *, root: str, val_fraction: float | None = None, split_seed: int = 0, classes: list[str] | None = None
) -> tuple[ImageFiles, ImageFiles]:
    """One folder per class in `root`/train and `root`/val (or validation, or test), or in `root` itself.

    Class folders may hold folders; hidden files and folders are left out. Warns if `root` has several of val,
    validation and test: the first one is used.

    Args:
        root: the folder.
        val_fraction: without a val folder, the share of every class that becomes val; None: 0.2 if there is no train
            folder either, else an error.
        split_seed: decides, together with the names of the files, which images become val.
        classes: only the images of these; None: all.
    """
    top = existing_folder(Path(root))
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
        return _of_classes(_train_and_val(top, val_folder), classes)

    if has_train and val_fraction is None:
        raise ValueError(f"{top}: found train/, expected val/ beside it, or val_fraction=0.2 to split train/")
    images = _read_classes(top, "train" if has_train else "")
    images, _ = _of_classes((images, images), classes)  # before they are split: others may have too few images for it
    return _split_by_fraction(images, 0.2 if val_fraction is None else val_fraction, split_seed)


def unsplit_folder(*, root: str, classes: list[str] | None = None) -> tuple[ImageFiles, ImageFiles]:
    """All images of `root`, which has one folder per class, and no validation images: to test on all of them."""
    images = _read_classes(existing_folder(Path(root)), "")
    nothing = ImageFiles(images.root, images.paths[:0], images.labels[:0], images.classes)
    return _of_classes((images, nothing), classes)


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
        raise ValueError(f"{images.root}: found {len(images.classes)} class folders, expected Caltech101's 102")

    train, test = [], []
    for name, members in _shuffled_classes(images, split_seed):
        if not 0 < train_per_class < len(members) or test_per_class < 1:
            raise ValueError(
                f"{images.root}: {name} has {len(members)} images, "
                f"train_per_class={train_per_class} and test_per_class={test_per_class} need one each at least"
            )
        train.append(members[:train_per_class])
        test.append(members[train_per_class : train_per_class + test_per_class])
    return _of_classes((_select(images, train), _select(images, test)), classes)


# Reading folders.

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp"),
    *(".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm"),
)


def _train_and_val(top: Path, val_folder: str) -> tuple[ImageFiles, ImageFiles]:
    return _read_classes(top, "train"), _read_classes(top, val_folder)


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
    return f"{images} images lying flat and the folders: {listing(_class_folders(base)) or 'none'}"


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
        raise ValueError(f"{base}: found {len(names)} class folders, expected 1000")
    others = [name for name in names if not re.fullmatch(r"n\d{8}", name)]
    if others:
        raise ValueError(f"{base}: found the folders {listing(others)}, expected WordNet ids such as n01440764")


# Splitting.


def _split_by_fraction(images: ImageFiles, fraction: float, seed: int) -> tuple[ImageFiles, ImageFiles]:
    """Splits off `fraction` of every class, rounded, for val; both parts get at least one image of each class."""
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction={fraction}: must be between 0 and 1")
    train, val = [], []
    for name, members in _shuffled_classes(images, seed):
        if len(members) < 2:
            hint = "add images of it, or leave it out by classes=[...] of the others"
            line = f"{images.root}: found one image of {name}, expected two or more to split; {hint}"
            raise ValueError(printable(line))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        train.append(members[count:])
        val.append(members[:count])
    return _select(images, train), _select(images, val)


def _shuffled_classes(images: ImageFiles, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each class with the indices of its images, shuffled by `shuffled_order`."""
    ends = np.cumsum(np.bincount(images.labels))
    for name, members in zip(images.classes, np.split(np.arange(len(images)), ends[:-1]), strict=True):
        yield name, members[shuffled_order(images.paths[members], seed)]


def shuffled_order(names: Sequence[bytes] | np.ndarray, seed: int) -> list[int]:
    """Returns the indices of names in an order that depends only on the seed and the names.

    It sorts by hashes instead of using a random generator, so that an added file does not move the others and no
    release of a library can change the split.
    """
    ranks = [hashlib.sha256(b"%d/%b" % (seed, name)).digest() for name in names]
    return sorted(range(len(ranks)), key=ranks.__getitem__)


def _of_classes(splits: tuple[ImageFiles, ImageFiles], classes: Sequence[str] | None) -> tuple[ImageFiles, ImageFiles]:
    """The images of `classes` in both splits; all of them for None.

    Raises ValueError for no class, a class that is given twice, and one that neither split has.
    """
    if classes is None:
        return splits
    train, val = splits
    known = sorted({*train.classes, *val.classes})
    check_classes(classes, known, train.root)
    return _relabelled(train, set(classes)), _relabelled(val, set(classes))


def check_classes(classes: Sequence[str], known: Sequence[str], place: str) -> None:
    """Raises ValueError for no class, a class that is given twice, and one that is not among the `known` of `place`."""
    if not classes:
        raise ValueError("classes=[]: must name at least one class, or be null for all")
    for i, name in enumerate(classes):
        if name in classes[:i]:
            raise ValueError(printable(f"classes: {name} is there twice"))
        if name not in known:
            close = get_close_matches(name, known)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {listing(known)}"
            raise ValueError(printable(f"classes: {place} has no class {name}; {hint}"))


def _relabelled(images: ImageFiles, classes: set[str]) -> ImageFiles:
    """The images of those of `classes` that this split has, labelled from 0 in its own order."""
    kept = np.array([name in classes for name in images.classes])
    chosen = kept[images.labels]
    new_labels = (np.cumsum(kept) - 1)[images.labels[chosen]]
    return ImageFiles(images.root, images.paths[chosen], new_labels, tuple(compress(images.classes, kept)))


def _select(images: ImageFiles, indices: Sequence[np.ndarray]) -> ImageFiles:
    """The images with these indices, in their old order."""
    chosen = np.sort(np.concatenate(indices))
    return ImageFiles(images.root, images.paths[chosen], images.labels[chosen], images.classes)
