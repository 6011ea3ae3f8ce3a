"""Data sets for detection in the JSON of COCO, read by pycocotools."""

import math
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.data.folders import existing_folder
from sppnet.data.image_files import check_classes
from sppnet.data.objects import AnnotatedFiles, DetectionSplits, Objects, annotated_files
from sppnet.runtime.names import first_line, listing, printable


def coco(
    *,
    root: str,
    train_images: str = "train2017",
    train_annotations: str = "annotations/instances_train2017.json",
    test_images: str = "val2017",
    test_annotations: str = "annotations/instances_val2017.json",
    classes: list[str] | None = None,
) -> DetectionSplits:
    """Images with their objects, in the layout of COCO.

    Classes are the categories in the order of their ids. Crowds (iscrowd) are difficult objects. Boxes that reach
    outside their image are cut to it, and boxes without width or height, of which COCO has a few, are left out; both
    give one warning with the number.

    Args:
        root: the folder of the data set.
        train_images: the folder of the images to train on, from `root`.
        train_annotations: their JSON file, from `root`.
        test_images: as `train_images`, of the images to test on.
        test_annotations: as `train_annotations`.
        classes: those whose objects are read, in the order of their labels; images without any stay. None: all.

    Raises ModuleNotFoundError without pycocotools, and FileNotFoundError or ValueError, naming the file and the
    annotation, for anything that is missing or malformed, and for splits with other categories.
    """
    top = existing_folder(Path(root))
    train, test = _read_file(top / train_annotations), _read_file(top / test_annotations)
    if train.categories != test.categories:
        difference = sorted({*train.categories.items()} ^ {*test.categories.items()})
        names = listing([f"{number} {name}" for number, name in difference])
        raise ValueError(f"{test.file}: has other categories than {train.file}: {names}")

    known = list(train.categories.values())
    if classes is not None:
        check_classes(classes, known, str(top))
    kept = tuple(known if classes is None else classes)
    return DetectionSplits(_annotated(top, train_images, train, kept), _annotated(top, test_images, test, kept))


class _File:
    """A JSON file as pycocotools reads it, with its categories: id -> name, in the order of the ids."""

    def __init__(self, file: Path, content: Any) -> None:
        self.file, self.content = file, content
        self.categories = {number: str(content.cats[number]["name"]) for number in sorted(content.cats)}
        if repeated := [name for name in self.categories.values() if [*self.categories.values()].count(name) > 1]:
            raise ValueError(f"two categories are called {repeated[0]}")
        if not self.categories or not content.imgs:
            raise ValueError(f"found {len(content.imgs)} images and {len(self.categories)} categories")
        if len(content.anns) != (count := len(content.dataset.get("annotations", ()))):
            raise ValueError(f"{count - len(content.anns)} ids of annotations are there twice")


def _read_file(file: Path) -> _File:
    try:
        from pycocotools.coco import COCO
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('data=coco needs pycocotools: pip install "sppnet[coco]"') from error
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    try:
        with redirect_stdout(StringIO()):  # it prints how long it took
            return _File(file, COCO(str(file)))
    except KeyError as error:
        raise ValueError(f"{file}: an image, annotation or category has no {error}") from error
    except (ValueError, TypeError, AssertionError, AttributeError, RecursionError) as error:
        raise ValueError(printable(f"{file}: not the JSON of COCO ({first_line(error)})")) from error


def _annotated(top: Path, folder: str, read: _File, classes: tuple[str, ...]) -> AnnotatedFiles:
    """The images in the order of their ids, with the objects of `classes`, labelled in this order."""
    images = [read.content.imgs[number] for number in sorted(read.content.imgs)]
    if unknown := sorted(set(map(str, read.content.imgToAnns)) - {str(image["id"]) for image in images}):
        raise ValueError(f"{read.file}: found annotations of image {unknown[0]}, and no such image")
    existing_folder(top / folder)

    label_of = {number: classes.index(name) for number, name in read.categories.items() if name in classes}
    findings: dict[str, list[Any]] = {"clipped": [], "empty": []}
    objects = [_objects_of(read, image, label_of, findings) for image in images]
    _warn(read.file, findings)
    return annotated_files(str(top), [f"{folder}/{image['file_name']}" for image in images], objects, classes)


def _objects_of(
    read: _File, image: dict[str, Any], label_of: dict[int, int], findings: dict[str, list[Any]]
) -> Objects:
    boxes, labels, difficult = [], [], []
    for annotation in read.content.imgToAnns.get(image["id"], ()):
        if annotation["category_id"] not in read.categories:
            unknown = f"has the category_id {annotation['category_id']!r}, and there is no such category"
            raise ValueError(printable(f"{read.file}: annotation {annotation['id']} {unknown}"))
        box = _box(read.file, annotation, image, findings)
        label = label_of.get(annotation["category_id"])
        if box is None or label is None:
            continue
        boxes.append(box)
        labels.append(label)
        difficult.append(bool(annotation.get("iscrowd", 0)))
    return Objects(np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, bool))


def _box(
    file: Path, annotation: dict[str, Any], image: dict[str, Any], findings: dict[str, list[Any]]
) -> list[float] | None:
    """The half-open box of an annotation, cut to its image; None for a box without width or height."""
    place = f"{file}: annotation {annotation['id']}"
    x, y, width, height = _numbers(annotation.get("bbox"), 4, f"{place} has the bbox")
    sides = _numbers([image.get("width"), image.get("height")], 2, f"{place}: its image has the width and height")
    if min(width, height) < 0:
        raise ValueError(f"{place} has the bbox {annotation['bbox']}, expected a width and height from 0")
    if min(width, height) == 0:
        findings["empty"].append(annotation["id"])
        return None

    box = [x, y, x + width, y + height]
    inside = [min(max(value, 0.0), limit) for value, limit in zip(box, 2 * sides, strict=True)]
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise ValueError(f"{place} has the bbox {annotation['bbox']}, outside its image of {sides[0]:g}x{sides[1]:g}")
    if inside != box:
        findings["clipped"].append(annotation["id"])
    return inside


def _numbers(values: Any, count: int, place: str) -> list[float]:
    """The values as finite numbers. Raises ValueError, after the words in `place`, for anything else."""
    are_numbers = isinstance(values, Iterable) and all(type(value) in (int, float) for value in values)
    if not are_numbers or len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(printable(f"{place} {values!r:.100}, expected {count} numbers"))
    return [float(value) for value in values]


def _warn(file: Path, findings: dict[str, list[Any]]) -> None:
    words = {
        "clipped": "boxes reach outside their images and are cut to them",
        "empty": "boxes have no width or no height and are left out",
    }
    for kind, found in findings.items():
        if found:
            warnings.warn(f"{file}: {len(found):,} {words[kind]}, first that of annotation {found[0]}", stacklevel=4)
