"""Objects in images: their boxes and classes, data sets for detection, and selecting images and classes of them.

Letters: k objects in an image, n images. Boxes are half-open: x0, y0, x1, y1 in pixels counted from 0.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from sppnet.data.image_files import NamedFiles, check_classes
from sppnet.data.images import Images


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image."""

    boxes: np.ndarray  # float64 (k, 4)
    labels: np.ndarray  # int64 (k,), indices of the classes of the data set
    difficult: np.ndarray  # bool (k,): ignored by the protocols of VOC

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, chosen: slice | np.ndarray) -> "Objects":
        """Returns the objects at a slice, at indices, or where a mask is true."""
        return Objects(self.boxes[chosen], self.labels[chosen], self.difficult[chosen])


class ObjectsByImage(Protocol):
    """The objects in images, by index, without the images."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def objects(self, index: int) -> Objects:
        """Returns the objects of an image, with boxes inside it that are not empty."""


class AnnotatedImages(Images, ObjectsByImage, Protocol):
    """Images with the objects in them. Images without objects belong to it as well."""


class DetectionSplits(NamedTuple):
    """The two splits of a data set for detection, with the same classes."""

    train: AnnotatedImages
    test: AnnotatedImages


@dataclass(frozen=True, eq=False)
class AnnotatedFiles(NamedFiles):
    """Image files with the objects in them, in a few arrays for all images."""

    starts: np.ndarray  # int64 (n + 1,): the objects of image i are those from starts[i] to starts[i + 1]
    all_objects: Objects  # of all images, one image after the other
    classes: tuple[str, ...]

    def objects(self, index: int) -> Objects:
        return self.all_objects.of(slice(self.starts[index], self.starts[index + 1]))

    def fingerprint(self) -> str:
        return objects_fingerprint(self)


def annotated_files(
    root: str, paths: Sequence[str], objects: Sequence[Objects], classes: tuple[str, ...]
) -> AnnotatedFiles:
    """Puts the objects of image files together: `paths` from `root` with slashes, and the objects of each."""
    starts = np.cumsum([0, *map(len, objects)])
    together = Objects(
        np.concatenate([np.empty((0, 4)), *(of_image.boxes for of_image in objects)]),
        np.concatenate([np.empty(0, np.int64), *(of_image.labels for of_image in objects)]),
        np.concatenate([np.empty(0, bool), *(of_image.difficult for of_image in objects)]),
    )
    return AnnotatedFiles(root, np.array([os.fsencode(path) for path in paths]), starts, together, classes)


def objects_fingerprint(images: ObjectsByImage) -> str:
    """Returns a hash of the classes and of the name and the objects of every image, not of the pixels."""
    names = [images.name(i) for i in range(len(images))]
    digest = hashlib.sha256(json.dumps([images.classes, names]).encode())
    for i in range(len(images)):
        boxes, labels, difficult = (images.objects(i).boxes, images.objects(i).labels, images.objects(i).difficult)
        digest.update(len(labels).to_bytes(8, "little") + np.asarray(boxes, np.float64).tobytes())
        digest.update(np.asarray(labels, np.int64).tobytes() + np.asarray(difficult, bool).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class SelectedAnnotatedImages:
    """Some images of a data set, with the objects of some of its classes."""

    source: AnnotatedImages
    places: np.ndarray  # int64 (n,): indices in the source
    new_labels: np.ndarray  # int64, by label of the source; -1 where its objects are left out
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.places[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.places[index]))

    def objects(self, index: int) -> Objects:
        objects = self.source.objects(int(self.places[index]))
        labels = self.new_labels[objects.labels]
        return Objects(objects.boxes, labels, objects.difficult).of(labels >= 0)

    def fingerprint(self) -> str:
        return objects_fingerprint(self)


def select_objects(
    images: AnnotatedImages,
    *,
    exclude: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> SelectedAnnotatedImages:
    """Selects images by name and objects by class. Images whose objects are all left out stay.

    Args:
        images: the images.
        exclude: names of images to leave out.
        classes: those whose objects are kept, in the order of the new labels; None keeps all.
        limit: the first so many images that are not excluded; None for all.

    Raises ValueError for an unknown name or class, a class that is there twice, a limit below 1, and if no image is
    left.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: must be at least 1, or null for all images")
    kept = images.classes if classes is None else tuple(classes)
    check_classes(kept, images.classes, "the data set")

    new_labels = np.array([kept.index(name) if name in kept else -1 for name in images.classes], np.int64)
    return SelectedAnnotatedImages(images, _places(images, exclude)[:limit], new_labels, kept)


def _places(images: AnnotatedImages, exclude: Sequence[str]) -> np.ndarray:
    """The indices of the images that are not excluded."""
    if not exclude:
        return np.arange(len(images))
    names = [images.name(i) for i in range(len(images))]
    if unknown := sorted(set(exclude) - set(names)):
        raise ValueError(f"exclude={unknown[0]}: no image has this name; such a name is {names[0]}")
    places = np.flatnonzero(~np.isin(names, list(exclude)))
    if not len(places):
        raise ValueError(f"exclude: leaves none of the {len(images):,} images")
    return places


def exclude_images(splits: DetectionSplits, exclude: Sequence[str]) -> DetectionSplits:
    """Returns both splits without the images named in `exclude`. Raises ValueError for a name that neither has."""
    names = [{images.name(i) for i in range(len(images))} for images in splits]
    if unknown := sorted(set(exclude) - names[0] - names[1]):
        raise ValueError(f"exclude={unknown[0]}: no image has this name; such a name is {splits.train.name(0)}")
    train, test = (
        select_objects(images, exclude=sorted(known.intersection(exclude)))
        for images, known in zip(splits, names, strict=True)
    )
    return DetectionSplits(train, test)
