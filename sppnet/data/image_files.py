"""Image files by name and label: the data sets of files, random splits of them, and some of their classes."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import compress

import numpy as np

from sppnet.data.images import read_image_file
from sppnet.runtime.names import listing, printable

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp"),
    *(".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm"),
)

_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


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


def sorted_files(root: str, paths: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> ImageFiles:
    """Returns image files sorted by class, then by path.

    Classes are the names that an image has, sorted: by value if all of them are whole numbers, so that -1 is before 2
    and 2 before 10.

    Args:
        root: the folder that `paths` start from.
        paths: (n,) of bytes.
        labels: int (n,), indices in `names`.
        names: different ones, in any order.
    """
    used, labels = np.unique(labels, return_inverse=True)
    found = [names[i] for i in used]
    by_value = all(name.removeprefix("-").isdecimal() for name in found)
    order = sorted(range(len(found)), key=lambda i: (int(found[i]) if by_value else 0, found[i]))
    new_labels = np.argsort(order)[labels]
    rows = np.lexsort((paths, new_labels))
    return ImageFiles(root, paths[rows], new_labels[rows], tuple(found[i] for i in order))


def chosen_parts(
    train: ImageFiles,
    val: ImageFiles,
    classes: Sequence[str] | None,
    place: str | None = None,
    place_of_class: Callable[[str], str] | None = None,
) -> tuple[ImageFiles, ImageFiles]:
    """Returns the images of `classes`, None for all, in fixed parts, both labelled by the classes of `train`.

    Args:
        train: the training images.
        val: the validation images.
        classes: names.
        place: of the data set, for messages; None: the folder of the images.
        place_of_class: returns where a class is in the validation images, for messages; None: `place`.

    Raises ValueError as `of_classes`, for a part without images, and for a class that only `val` has.
    """
    place = place or train.root
    train, val = of_classes((train, val), classes, place)
    for part, images in (("training", train), ("validation", val)):
        if not len(images):
            raise ValueError(f"{place}: found no {part} images")
    if unknown := [name for name in val.classes if name not in train.classes]:
        where = place_of_class(unknown[0]) if place_of_class else place
        raise ValueError(
            f"{where}: found validation images of {listing(unknown)}, and no training images; add some, or leave "
            "the class out by classes=[...] of the others"
        )
    label_of = {name: label for label, name in enumerate(train.classes)}
    labels = np.array([label_of[name] for name in val.classes], np.int64)[val.labels]
    return train, ImageFiles(val.root, val.paths, labels, train.classes)


def missing_files(root: str, paths: np.ndarray) -> np.ndarray:
    """Returns the indices of those of `paths`, (n,) of bytes, that are no files in `root`: int (m,), ascending.

    Each folder is listed once: over a network that takes far less time than asking for every file.
    """
    folders, folder_of = _folders_of(root, paths)
    order = np.argsort(folder_of, kind="stable")
    missing: list[int] = []
    for folder, indices in zip(folders, np.split(order, np.cumsum(np.bincount(folder_of))[:-1]), strict=True):
        found = _file_names(folder)
        missing += [i for i in indices.tolist() if paths[i].rpartition(b"/")[2] not in found]
    return np.array(sorted(missing), np.int64)


def file_keys(root: str, paths: np.ndarray) -> np.ndarray:
    """Returns (n,) of bytes that are equal for the paths of one file, however `paths`, (n,) of bytes, spell it.

    A file has many: absolute or from `root`, with "..", or through a link to a folder. Each folder is resolved once.
    Links to files are not followed: they are files with names of their own.
    """
    folders, folder_of = _folders_of(root, paths)
    real = [folder + b"/" for folder in _resolved(folders)]
    names = (path.rpartition(b"/")[2] for path in paths.tolist())
    return np.array([real[at] + name for at, name in zip(folder_of.tolist(), names, strict=True)], np.bytes_)


def _resolved(folders: Sequence[bytes]) -> list[bytes]:
    """Returns the real paths of folders, as `os.path.realpath` does, but asks for what is above them only once."""
    real_parent: dict[bytes, bytes] = {}
    real = []
    for folder in folders:
        parent, name = os.path.split(folder.rstrip(b"/") or folder)
        if parent not in real_parent:
            real_parent[parent] = parent if b"\0" in parent else os.path.realpath(parent)  # which raises for NUL
        path = os.path.join(real_parent[parent], name)
        is_other = name in (b"", b".", b"..") or os.path.islink(path)  # noqa: PTH114, as Path takes no bytes
        real.append(os.path.realpath(path) if is_other else path)
    return real


def _folders_of(root: str, paths: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Returns the folders of files, each once, and the index of that of each file: int (n,)."""
    folders, folder_of = np.unique([path[: path.rfind(b"/") + 1] for path in paths.tolist()], return_inverse=True)
    return [os.path.join(os.fsencode(root), folder) for folder in folders.tolist()], folder_of


def _file_names(folder: bytes) -> set[bytes]:
    """Returns the names of the files in a folder, none if there is no such folder, or can be none."""
    if b"\0" in folder:
        return set()
    try:
        with os.scandir(folder or b".") as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except OSError as error:
        if error.errno in _NO_FOLDER:
            return set()
        raise


def _is_file(entry: os.DirEntry[bytes]) -> bool:
    """Whether it is a file or a link to one. Broken and circular links are not."""
    try:
        return entry.is_file()
    except OSError:
        return False


# Splits and classes. They take the images of a data set sorted by label, each label being there.


def split_by_fraction(
    images: ImageFiles, fraction: float, seed: int, place_of_class: Callable[[str], str] | None = None
) -> tuple[ImageFiles, ImageFiles]:
    """Splits off `fraction` of every class, rounded, for val; both parts get at least one image of each class.

    Raises ValueError for a class of one image, at what `place_of_class` returns for it; None: the folder of the images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction={fraction}: must be above 0 and below 1")
    train, val = [], []
    for name, members in shuffled_classes(images, seed):
        if len(members) < 2:
            hint = "add images of it, or leave it out by classes=[...] of the others"
            place = place_of_class(name) if place_of_class else images.root
            line = f"{place}: found one image of {name}, expected two or more to split; {hint}"
            raise ValueError(printable(line))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        train.append(members[count:])
        val.append(members[:count])
    return select_files(images, train), select_files(images, val)


def shuffled_classes(images: ImageFiles, seed: int) -> Iterator[tuple[str, np.ndarray]]:
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


def of_classes(
    splits: tuple[ImageFiles, ImageFiles], classes: Sequence[str] | None, place: str | None = None
) -> tuple[ImageFiles, ImageFiles]:
    """The images of `classes` in both splits; all of them for None. Messages name `place`; None: their folder.

    Raises ValueError for no class, a class that is given twice, and one that neither split has.
    """
    if classes is None:
        return splits
    train, val = splits
    known = sorted({*train.classes, *val.classes})
    check_classes(classes, known, place or train.root)
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


def select_files(images: ImageFiles, indices: Sequence[np.ndarray]) -> ImageFiles:
    """The images with these indices, in their old order."""
    chosen = np.sort(np.concatenate(indices))
    return ImageFiles(images.root, images.paths[chosen], images.labels[chosen], images.classes)
