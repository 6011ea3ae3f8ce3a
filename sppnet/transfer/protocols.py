"""Data sets for transfer: the images, the classes that each one shows, and splits into training and test images.

Letters: n images.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sppnet.data.sources import (
    MULTI_LABEL_SOURCES,
    ImageData,
    Images,
    SelectedImages,
    has_fixed_parts,
    open_data,
    without_images,
)
from sppnet.runtime.names import listing, printable

SPLITS = 10  # random splits of the paper's Caltech-101 (arXiv:1406.4729v4, §3.3)
_MOST_SPLITS = 1000


class Split(NamedTuple):
    """One division of a data set: indices of its images, int (m,) and int (t,)."""

    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class TransferData:
    """A data set for transfer.

    images: the images of all splits, each once.
    truth: int8 (n, classes): 1 where the image shows the class, -1 where not, 0 where the class is ignored.
    classes: their names.
    splits: the divisions into training and test images.
    one_label: whether every image has exactly one class.
    """

    images: Images
    truth: np.ndarray
    classes: tuple[str, ...]
    splits: list[Split]
    one_label: bool

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of images as `Scores` has them: int64 (k,), or int8 (k, classes) of several classes."""
        truth = self.truth[indices]
        return truth.argmax(axis=1).astype(np.int64) if self.one_label else truth

    def fingerprint(self, indices: np.ndarray, digests: np.ndarray) -> str:
        """Returns a hash of the classes and of the name, classes and content of some images, in order.

        Args:
            indices: of the images.
            digests: `content_digests` of all images.
        """
        names = [self.images.name(int(i)) for i in indices]
        digest = hashlib.sha256(json.dumps([self.classes, names]).encode())
        digest.update(self.truth[indices].tobytes() + digests[indices].tobytes())
        return digest.hexdigest()


def open_transfer_data(
    source: str, /, *, splits: int | None = None, exclude: Sequence[str] = (), **options: Any
) -> TransferData:
    """Opens a data set and its splits.

    Args:
        source: a name of DATA_SOURCES, whose train and val parts are a split, or of MULTI_LABEL_SOURCES.
        splits: how many; random ones have the seeds split_seed, split_seed + 1 and so on. None is SPLITS where the
            source splits at random, 1 where its parts are fixed.
        exclude: names of images to leave out.
        options: of the source.

    Raises ValueError for more splits than the data has, and for classes without training images.
    """
    check_splits(splits, source, options)
    if source in MULTI_LABEL_SOURCES:
        data = _several_labels(source, exclude, options)
    else:
        data = _one_label(source, splits, exclude, options)
    _check_classes(data)
    return data


def check_splits(splits: int | None, source: str, options: dict[str, Any]) -> None:
    """Raises ValueError for a number of splits that the data does not have. Reads no data."""
    if splits is not None and not 1 <= splits <= _MOST_SPLITS:
        raise ValueError(f"splits={splits}: must be from 1 to {_MOST_SPLITS}, or null")
    if splits not in (None, 1) and has_fixed_parts(source, options):
        raise ValueError(f"splits={splits}: the parts of this data are fixed; give splits=1 or leave it out")


def _one_label(source: str, splits: int | None, exclude: Sequence[str], options: dict[str, Any]) -> TransferData:
    """Opens a data set whose images have one label each."""
    opened = _opened_splits(source, splits, exclude, options)
    parts = [part for data in opened for part in (data.train, data.val)]

    index_of: dict[str, int] = {}
    places: list[tuple[int, int]] = []  # of the images, each once: number of the part, index in it
    indices = []  # of the images of every part
    for number, part in enumerate(parts):
        names = [part.name(i) for i in range(len(part))]
        for place, name in enumerate(names):
            if name not in index_of:
                index_of[name] = len(places)
                places.append((number, place))
        indices.append(np.array([index_of[name] for name in names]))

    classes = opened[0].classes
    labels = np.array([parts[number].labels[place] for number, place in places], np.int64)
    truth = np.full((len(labels), len(classes)), -1, np.int8)
    truth[np.arange(len(labels)), labels] = 1
    images = SelectedImages(tuple(parts), np.array(places), labels, classes)
    pairs = zip(indices[::2], indices[1::2], strict=True)
    return TransferData(images, truth, classes, [Split(*pair) for pair in pairs], True)


def _opened_splits(source: str, splits: int | None, exclude: Sequence[str], options: dict[str, Any]) -> list[ImageData]:
    """Opens a data set once per split."""
    if has_fixed_parts(source, options):
        opened = [open_data(source, **options)]
    else:
        first = int(options.get("split_seed") or 0)
        seeds = range(first, first + (splits or SPLITS))
        opened = [open_data(source, **{**options, "split_seed": seed}) for seed in seeds]
    return _without_images(opened, exclude)


def _without_images(opened: Sequence[ImageData], exclude: Sequence[str]) -> list[ImageData]:
    """Leaves images out of every split that has them. Raises ValueError for one that no split has."""
    if not exclude:
        return list(opened)
    names = [_names(data.train) | _names(data.val) for data in opened]
    if unknown := sorted(set(exclude).difference(*names)):
        some = opened[0].train.name(0)
        raise ValueError(f"exclude={unknown[0]}: no image of these splits has this name; such a name is {some}")
    return [
        without_images(data, sorted(found.intersection(exclude))) for data, found in zip(opened, names, strict=True)
    ]


def _several_labels(source: str, exclude: Sequence[str], options: dict[str, Any]) -> TransferData:
    """Opens a data set whose images may show several classes."""
    train, test = MULTI_LABEL_SOURCES[source](**options)
    names = [images.name(i) for images in (train, test) for i in range(len(images))]
    if unknown := sorted(set(exclude) - set(names)):
        raise ValueError(f"exclude={unknown[0]}: no image has this name; such a name is {names[0]}")

    places = np.array([(part, i) for part, images in enumerate((train, test)) for i in range(len(images))])
    kept = ~np.isin(names, list(exclude))
    truth = np.concatenate([train.labels, test.labels])[kept]
    places = places[kept]
    images = SelectedImages((train, test), places, np.zeros(len(places), np.int64), train.classes)
    split = Split(*(np.flatnonzero(places[:, 0] == part) for part in (0, 1)))
    return TransferData(images, truth, train.classes, [split], False)


def _names(images: Images) -> set[str]:
    return {images.name(i) for i in range(len(images))}


def _check_classes(data: TransferData) -> None:
    """Raises ValueError unless every class has training images that show it and others that do not."""
    if len(data.classes) < 2 and data.one_label:
        raise ValueError(f"the data has one class, {data.classes[0]}: transfer needs two or more")
    for name, images in zip(data.classes, (data.truth == 1).sum(axis=0), strict=True):
        if images < 2 and data.one_label:
            noun = "image" if images == 1 else "images"
            raise ValueError(
                f"{printable(name)}: {images} {noun}, and a class needs one to train on and one to test on; add images "
                "of it, or leave the class out"
            )
    for number, split in enumerate(data.splits):
        if not len(split.test):
            raise ValueError(f"split {number} has no test images")
        truth = data.truth[split.train]
        for label, found in ((1, "shows"), (-1, "is without")):
            missing = ~(truth == label).any(axis=0)
            if missing.any():
                names = [name for name, is_missing in zip(data.classes, missing, strict=True) if is_missing]
                raise ValueError(f"split {number}: no training image {found} {listing(names)}; leave the class out")
