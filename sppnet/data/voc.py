"""PASCAL VOC: annotations in XML, and the classification task of VOC 2007 with several labels per image."""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppnet.data.folders import NamedFiles, existing_folder, files_fingerprint
from sppnet.runtime.names import first_line, listing, printable

_MAX_XML_BYTES = 2_000_000  # five thousand objects

# Reading annotations.


class AnnotatedObject(NamedTuple):
    """An object in an image."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels from 0; x1 and y1 are just outside
    difficult: bool  # ignored by the protocols of VOC
    truncated: bool


class Annotation(NamedTuple):
    """What an annotation file says of its image. Width and height are None if it does not say them."""

    width: int | None
    height: int | None
    objects: tuple[AnnotatedObject, ...]


def read_annotation(source: Path | bytes, name: str) -> Annotation:
    """Reads an annotation in the XML of PASCAL VOC.

    VOC's boxes count pixels from 1 and include the last one; these count from 0 and are half-open, so that
    (1, 1, 500, 375) becomes (0, 0, 500, 375). Some files have fractions of pixels, which stay. Boxes that reach beyond
    the image stay, too. A `difficult` or `truncated` that is missing is False, and a size of 0 is one that is missing.

    Args:
        source: the file or its content.
        name: what errors call it.

    Raises FileNotFoundError if there is no such file, and ValueError, with `name` and the number of the object, for
    anything else: other XML, empty boxes, a DOCTYPE (nine lines of entities can make a billion), more than 2 MB.
    """
    try:
        root = _parsed(source if isinstance(source, bytes) else _content(source))
        objects = tuple(_read_object(i, element) for i, element in enumerate(root.findall("object"), 1))
        return Annotation(_length(root, "width"), _length(root, "height"), objects)
    except FileNotFoundError as error:
        raise FileNotFoundError(printable(f"{name}: there is no such file")) from error
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(printable(f"{name}: {first_line(error)}")) from error


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_XML_BYTES + 1)


def _parsed(content: bytes) -> ElementTree.Element:
    """Returns the element <annotation> of a document without entities of its own."""
    if len(content) > _MAX_XML_BYTES:
        raise ValueError(f"more than {_MAX_XML_BYTES:,} bytes")
    # Given as text, whatever encoding the file declares, so that no encoding hides a DOCTYPE from the search.
    text = content.decode("utf-8")
    if "<!DOCTYPE" in text:
        raise ValueError("found a DOCTYPE, which may define entities, expected XML without one")
    root = ElementTree.fromstring(text)
    if root.tag != "annotation":
        raise ValueError(f"found <{root.tag}>, expected <annotation>")
    return root


def _read_object(number: int, element: ElementTree.Element) -> AnnotatedObject:
    name = (element.findtext("name") or "").strip()
    try:
        if not name:
            raise ValueError("has no <name>")
        x0, y0, x1, y1 = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        if x1 <= x0 - 1 or y1 <= y0 - 1:
            raise ValueError(f"has the empty box xmin {x0:g}, ymin {y0:g}, xmax {x1:g}, ymax {y1:g}")
        return AnnotatedObject(name, (x0 - 1, y0 - 1, x1, y1), _flag(element, "difficult"), _flag(element, "truncated"))
    except ValueError as error:
        raise ValueError(f"object {number}{f' ({name})' if name else ''} {error}") from error


def _number(element: ElementTree.Element, tag: str) -> float:
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"has {text!r} as <{tag}>, expected a number")
    return value


def _flag(element: ElementTree.Element, tag: str) -> bool:
    text = (element.findtext(tag) or "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"has {text!r} as <{tag}>, expected 0 or 1")
    return text == "1"


def _length(root: ElementTree.Element, tag: str) -> int | None:
    """The width or height of the image; None if it is missing or 0."""
    if not (root.findtext(f"size/{tag}") or "").strip():
        return None
    length = _number(root, f"size/{tag}")
    if length < 0:
        raise ValueError(f"has the {tag} {length:g}")
    return int(length) or None


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
        images = _read_list(main / f"{split}.txt")
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
    paths = _image_paths(top, images)  # also refuses names with slashes, before they become paths of annotations
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


def _read_list(file: Path) -> list[str]:
    """Reads the names of images, one on each line."""
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


def _image_paths(top: Path, images: Sequence[str]) -> list[str]:
    folder = existing_folder(top / "JPEGImages")
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
