"""The classification task of PASCAL VOC 2007, with several labels per image, and the files of VOC's layout."""

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppnet.data.annotations import read_annotation
from sppnet.data.folders import existing_folder
from sppnet.data.image_files import NamedFiles, files_fingerprint
from sppnet.runtime.names import listing, printable

# The classification task.


@dataclass(frozen=True, eq=False)
class MultiLabelFiles(NamedFiles):
    """Images in files, each with a label for every class."""

    # int8 (n, classes): 1 present, -1 absent, 0 present only as difficult objects, which average precision ignores.
    labels: np.ndarray
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """A hash of names and labels, not of the contents of the files, because reading them takes long."""
        return files_fingerprint(self.paths, self.labels, self.classes)


class MultiLabelSplits(NamedTuple):
    """The two splits of a data set with several labels per image, of the same classes."""

    train: MultiLabelFiles
    test: MultiLabelFiles


def voc2007(*, root: str, train_split: str = "trainval", test_split: str = "test") -> MultiLabelSplits:
    """The classification task of PASCAL VOC 2007: 20 classes, several of which may be in an image.

    Labels are those of the files ImageSets/Main/CLASS_SPLIT.txt. Without such files for a split, they are taken from
    the objects in Annotations/, which gives the same. Classes are in alphabetical order, as VOC has them. Other data
    sets in this layout are read as well: `root` is then the folder that holds their ImageSets.

    Args:
        root: the folder VOC2007, or VOCdevkit that holds it, or the folder that holds VOCdevkit.
        train_split: the split to train on.
        test_split: the split to test on.

    Raises FileNotFoundError or ValueError, naming the file and the image, for missing folders, splits, class files,
    annotations and images, for other lines than the devkit's, and for an image in both splits.
    """
    top = _voc_folder(Path(root))
    train, test = _read_split(top, train_split), _read_split(top, test_split)
    if shared := sorted(set(train.images) & set(test.images)):
        raise ValueError(
            f"{top}: found {listing(shared)} in train_split={train_split} and in test_split={test_split}, expected "
            "different images"
        )

    classes = tuple(sorted(train.labels.keys() | test.labels.keys()))
    if not classes:
        raise ValueError(f"{top / 'Annotations'}: found no objects in the images of {train_split} and {test_split}")
    return MultiLabelSplits(_labelled_files(top, train, classes), _labelled_files(top, test, classes))


# Reading splits.


class _Split(NamedTuple):
    """A split as its files have it."""

    name: str
    images: list[str]
    paths: list[str]  # of the image files, from the folder that holds JPEGImages
    labels: dict[str, np.ndarray]  # class -> int8 (n,)
    has_class_files: bool


def _voc_folder(top: Path) -> Path:
    """The folder that holds ImageSets/Main."""
    existing_folder(top)
    for folder in (top, top / "VOC2007", top / "VOCdevkit" / "VOC2007"):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    folders = sorted(path.name for path in top.iterdir() if path.is_dir())
    raise FileNotFoundError(
        f"{top}: found the folders {listing(folders) or 'none'}, expected ImageSets/Main there, in VOC2007/ or in "
        "VOCdevkit/VOC2007/"
    )


def _read_split(top: Path, split: str) -> _Split:
    main = top / "ImageSets" / "Main"
    names = sorted(path.name for path in main.iterdir() if path.suffix == ".txt")
    class_files = {name.removesuffix(f"_{split}.txt"): main / name for name in names if name.endswith(f"_{split}.txt")}
    labels = {name: _read_class_file(file) for name, file in class_files.items()}
    if f"{split}.txt" in names:
        images = read_list(main / f"{split}.txt")
    elif class_files:
        images = list(next(iter(labels.values())))
    else:
        splits = sorted({name.removesuffix(".txt").rpartition("_")[2] for name in names})
        raise FileNotFoundError(f"{main}: found the splits {listing(splits) or 'none'}, expected {split}")
    if not images:
        raise ValueError(f"{main}: found no images in the files of {split}")

    for name, file in class_files.items():
        if different := sorted(labels[name].keys() ^ set(images)):
            raise ValueError(f"{file}: has other images than the other files of {split}: {listing(different)}")
    # Before annotations are read: it refuses names with slashes, which could lead out of the folder.
    paths = image_paths(top / "JPEGImages", images)
    if class_files:
        columns = {name: np.array([labels[name][image] for image in images], np.int8) for name in labels}
    else:
        columns = _labels_from_annotations(top / "Annotations", images)
    return _Split(split, images, paths, columns, bool(class_files))


def _read_class_file(file: Path) -> dict[str, int]:
    """Reads lines such as "000005 -1": image -> label."""
    labels: dict[str, int] = {}
    for place, line in _lines(file):
        image, label = [*line.rsplit(maxsplit=1), ""][:2]
        if label not in ("-1", "0", "1"):
            raise ValueError(printable(f"{place}: found {line!r}, expected the name of an image and -1, 0 or 1"))
        _check_new(image, labels, place)
        labels[image] = int(label)
    return labels


def read_list(file: Path) -> list[str]:
    """Reads the names of images, one on each line. ValueError, with the line, for a name that is there twice."""
    images: dict[str, None] = {}
    for place, image in _lines(file):
        _check_new(image, images, place)
        images[image] = None
    return list(images)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yields FILE:NUMBER and the text of each line that is not blank."""
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # names of files may be any bytes
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{file}:{number}", line.strip()


def _check_new(image: str, images: Container[str], place: str) -> None:
    if image in images:
        raise ValueError(printable(f"{place}: found {image} a second time"))


def image_paths(folder: Path, images: Sequence[str]) -> list[str]:
    """Returns the path of each image from the folder around `folder`, by its name without the suffix.

    Raises FileNotFoundError if an image is missing.
    """
    existing_folder(folder)
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir(), reverse=True):  # a.jpg comes after a.png, and takes its place
        if file.suffix.lower() in (".jpg", ".jpeg", ".png"):
            found[file.stem] = f"{folder.name}/{file.name}"
    if missing := [image for image in images if image not in found]:
        raise FileNotFoundError(f"{folder}: found no image files of {listing(missing)}, expected .jpg, .jpeg or .png")
    return [found[image] for image in images]


def _labels_from_annotations(folder: Path, images: Sequence[str]) -> dict[str, np.ndarray]:
    """Class -> int8 (n,) by the devkit's rule: 1 for objects that are not difficult, 0 for difficult ones alone."""
    labels: dict[str, np.ndarray] = {}
    for i, image in enumerate(images):
        file = folder / f"{image}.xml"
        for annotated in read_annotation(file, str(file)).objects:
            column = labels.setdefault(annotated.name, np.full(len(images), -1, np.int8))
            column[i] = max(column[i], 0 if annotated.difficult else 1)
    return labels


def _labelled_files(top: Path, split: _Split, classes: tuple[str, ...]) -> MultiLabelFiles:
    """Raises ValueError if one of `classes` is missing among the class files of the split."""
    missing = [name for name in classes if name not in split.labels]
    if missing and split.has_class_files:
        raise ValueError(
            f"{top / 'ImageSets' / 'Main'}: found no files {missing[0]}_{split.name}.txt, expected one for each class: "
            f"{listing(classes)}"
        )
    absent = np.full(len(split.images), -1, np.int8)
    labels = np.stack([split.labels.get(name, absent) for name in classes], axis=1)
    return MultiLabelFiles(str(top), np.array([os.fsencode(path) for path in split.paths]), labels, classes)
