"""Data sets for detection in the layout of PASCAL VOC: any classes, any splits."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppnet.data.annotations import Annotation, read_annotation
from sppnet.data.folders import existing_folder
from sppnet.data.image_files import check_classes, shuffled_order
from sppnet.data.images import UnreadableImage, read_image_size
from sppnet.data.objects import AnnotatedFiles, DetectionSplits, Objects, annotated_files
from sppnet.data.voc import image_paths, read_list
from sppnet.runtime.names import counted, listing, printable

_ANNOTATION_FOLDERS = ("Annotations", "annotations")  # the second ones are those of many data sets that are not VOC
_IMAGE_FOLDERS = ("JPEGImages", "images")


def voc_objects(
    *,
    root: str,
    train_split: str = "trainval",
    test_split: str | None = "test",
    val_fraction: float | None = None,
    split_seed: int = 0,
    classes: list[str] | None = None,
) -> DetectionSplits:
    """Images with their objects, in the layout of PASCAL VOC: any classes, any splits.

    Reads ImageSets/Main/SPLIT.txt, Annotations/*.xml and JPEGImages/ (or annotations/ and images/). Without
    ImageSets/Main all annotated images are one split, of which `val_fraction` holds out a part to test on.

    Boxes that reach outside their image are cut to it. An annotation whose size is not that of its image is read all
    the same: the image counts. Both give one warning with the number.

    Args:
        root: the folder that holds Annotations, or one around it with a single VOC folder, such as VOCdevkit.
        train_split: the split to train on.
        test_split: the split to test on; None with `val_fraction`.
        val_fraction: where there is no split to test on, the share of the images of `train_split` to test on.
        split_seed: decides, together with the names of the images, which ones `val_fraction` takes.
        classes: those whose objects are read, in the order of their labels; images without any stay. None: all that
            either split has, in alphabetical order.

    Raises FileNotFoundError or ValueError, naming the file and the object, for missing folders, splits, annotations and
    images, for what `read_annotation` refuses, for boxes that lie outside the image, and for an image in both splits.
    """
    top = _annotated_folder(Path(root))
    lists = _image_lists(top, train_split, test_split, val_fraction, split_seed)
    findings = _Findings()
    train, test = (_read_annotated(top, images, findings) for images in lists)
    findings.warn(top)

    known = sorted({name for split in (train, test) for names in split.class_names for name in names})
    if not known:
        raise ValueError(f"{top}: found no objects in the annotations of {len(lists[0]) + len(lists[1])} images")
    if classes is not None:
        check_classes(classes, known, str(top))
    kept = tuple(known if classes is None else classes)
    return DetectionSplits(_with_labels(top, train, kept), _with_labels(top, test, kept))


class _AnnotatedSplit(NamedTuple):
    """The images of a split and their objects, whose classes are still names."""

    paths: list[str]
    class_names: list[list[str]]
    boxes: list[np.ndarray]
    difficult: list[list[bool]]


@dataclass
class _Findings:
    """What is told about annotations: how many, and the first file."""

    clipped: int = 0
    first_clipped: str = ""
    other_sizes: int = 0
    first_other_size: str = ""

    def warn(self, top: Path) -> None:
        if self.clipped:
            reach = f"{self.clipped:,} boxes reach outside their images and are cut to them, first in"
            warnings.warn(printable(f"{top}: {reach} {self.first_clipped}"), stacklevel=3)
        if self.other_sizes:
            differ = f"{self.other_sizes:,} annotations have another size than their images, whose size counts, first"
            warnings.warn(printable(f"{top}: {differ} {self.first_other_size}"), stacklevel=3)


def _annotated_folder(root: Path) -> Path:
    """`root` if it holds annotations, else the only VOC folder in it or in its VOCdevkit that does."""
    existing_folder(root)
    if _existing_of(root, _ANNOTATION_FOLDERS):
        return root
    places = [*sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [place for place in places if _existing_of(place, _ANNOTATION_FOLDERS)]
    if len(found) == 1:
        return found[0]
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    raise FileNotFoundError(
        f"{root}: found {listing([str(place.relative_to(root)) for place in found])}, expected one of them as the root"
        if found
        else f"{root}: found the folders {listing(folders) or 'none'}, expected Annotations, ImageSets and JPEGImages"
    )


def _existing_of(top: Path, names: Sequence[str]) -> Path | None:
    """The first of these folders in `top` that exists."""
    return next((top / name for name in names if (top / name).is_dir()), None)


def _image_lists(
    top: Path, train_split: str, test_split: str | None, val_fraction: float | None, seed: int
) -> tuple[list[str], list[str]]:
    """The names of the images to train and to test on, without suffixes."""
    main = top / "ImageSets" / "Main"
    if not main.is_dir():
        images = sorted(path.stem for folder in _ANNOTATION_FOLDERS for path in (top / folder).glob("*.xml"))
        if val_fraction is None:
            found = f"found {len(images):,} annotations and no ImageSets/Main"
            raise ValueError(f"{top}: {found}; give val_fraction=0.2 to hold out a part of all images to test on")
        return _held_out(images, val_fraction, seed, str(top))

    train = _listed_images(main, train_split)
    if val_fraction is not None:
        if test_split is not None and (main / f"{test_split}.txt").is_file():
            clash = f"found {test_split}.txt, val_fraction={val_fraction} is for data without it"
            raise ValueError(f"{main}: {clash}, or for test_split=null")
        return _held_out(train, val_fraction, seed, str(main / f"{train_split}.txt"))
    if test_split is None:
        raise ValueError(f"test_split=null: needs val_fraction=0.2, the share of {train_split} to test on")

    test = _listed_images(main, test_split)
    if shared := sorted(set(train) & set(test)):
        raise ValueError(
            f"{top}: found {listing(shared)} in train_split={train_split} and in test_split={test_split}, expected "
            "different images"
        )
    return train, test


def _listed_images(main: Path, split: str) -> list[str]:
    file = main / f"{split}.txt"
    if not file.is_file():
        names = sorted((path.name for path in main.glob("*.txt")), key=lambda name: ("_" in name, name))
        found = f"found {listing(names) or 'no .txt files'}, expected {split}.txt"
        raise FileNotFoundError(f"{main}: {found}; val_fraction=0.2 holds out a part of train_split to test on")
    images = read_list(file)
    if not images:
        raise ValueError(f"{file}: found no images")
    return images


def _held_out(images: list[str], fraction: float, seed: int, place: str) -> tuple[list[str], list[str]]:
    """Splits off `fraction` of the images, rounded, to test on; both parts keep the order and have one at least."""
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction={fraction}: must be above 0 and below 1")
    if len(images) < 2:
        raise ValueError(f"{place}: found {counted(len(images), 'image')}, expected two or more to split")
    count = min(max(round(fraction * len(images)), 1), len(images) - 1)
    test = {images[i] for i in shuffled_order([os.fsencode(image) for image in images], seed)[:count]}
    return [image for image in images if image not in test], [image for image in images if image in test]


def _read_annotated(top: Path, images: list[str], findings: _Findings) -> _AnnotatedSplit:
    paths = image_paths(_existing_of(top, _IMAGE_FOLDERS) or top / _IMAGE_FOLDERS[0], images)
    folder = _existing_of(top, _ANNOTATION_FOLDERS) or top / _ANNOTATION_FOLDERS[0]
    split = _AnnotatedSplit(paths, [], [], [])
    for image, path in zip(images, paths, strict=True):
        file = folder / f"{image}.xml"
        annotation = read_annotation(file, str(file))
        size = _image_size(f"{top}/{path}", path, annotation)
        if annotation.width and annotation.height and size != (annotation.height, annotation.width):
            findings.other_sizes += 1
            findings.first_other_size = findings.first_other_size or str(file)
        split.class_names.append([found.name for found in annotation.objects])
        split.boxes.append(_boxes_inside(annotation, size, str(file), findings))
        split.difficult.append([found.difficult for found in annotation.objects])
    return split


def _image_size(path: str, name: str, annotation: Annotation) -> tuple[float, float]:
    """The (height, width) of an image. Of an unreadable one, which can still be excluded, what its annotation says."""
    try:
        return read_image_size(path, name)
    except UnreadableImage:
        return annotation.height or np.inf, annotation.width or np.inf


def _boxes_inside(annotation: Annotation, size: tuple[float, float], file: str, findings: _Findings) -> np.ndarray:
    """The boxes of an annotation cut to its image of `size` (height, width): float64 (k, 4)."""
    boxes = np.array([found.box for found in annotation.objects], np.float64).reshape(-1, 4)
    inside = np.clip(boxes, 0, [size[1], size[0], size[1], size[0]])
    for i in np.flatnonzero((inside[:, 2:] <= inside[:, :2]).any(axis=1)):
        x0, y0, x1, y1 = boxes[i]
        box = f"the box xmin {x0 + 1:g}, ymin {y0 + 1:g}, xmax {x1:g}, ymax {y1:g}"
        place = f"object {i + 1} ({annotation.objects[i].name}) has {box}, outside the image"
        raise ValueError(printable(f"{file}: {place} of {size[1]}x{size[0]} pixels"))

    if clipped := int((inside != boxes).any(axis=1).sum()):
        findings.clipped += clipped
        findings.first_clipped = findings.first_clipped or file
    return inside


def _with_labels(top: Path, split: _AnnotatedSplit, classes: tuple[str, ...]) -> AnnotatedFiles:
    """The split with the objects of `classes` alone, labelled in this order."""
    label_of = {name: label for label, name in enumerate(classes)}
    objects = []
    for names, boxes, difficult in zip(split.class_names, split.boxes, split.difficult, strict=True):
        labels = np.array([label_of.get(name, -1) for name in names], np.int64)
        objects.append(Objects(boxes, labels, np.array(difficult, bool)).of(labels >= 0))
    return annotated_files(str(top), split.paths, objects, classes)
