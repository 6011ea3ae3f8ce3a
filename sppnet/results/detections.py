"""Detections of a test set: saved as JSON lines and as VOC result files, matched with the objects, average precision.

Letters: n images, K detections in all of them. Boxes are half-open: x0, y0, x1, y1 in pixels counted from 0.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppnet.data.objects import ObjectsByImage
from sppnet.metrics import average_precision, interpolated_precision
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line, printable


class ImageDetections(NamedTuple):
    """The detections in one image."""

    name: str  # of the image
    labels: np.ndarray  # int64 (k,)
    scores: np.ndarray  # float32 (k,), higher for detections more likely to be right
    boxes: np.ndarray  # float32 (k, 4)


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections in all images of a test set, image after image.

    names: of all n images, also of those without detections.
    classes: what the labels index.
    images: int64 (K,), indices of images in ascending order.
    labels: int64 (K,).
    scores: float32 (K,), finite.
    boxes: float32 (K, 4), finite, x0 <= x1 and y0 <= y1.
    about: plain values: where the detections come from.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[ImageDetections]:
        ends = np.searchsorted(self.images, np.arange(len(self.names) + 1))
        for name, start, end in zip(self.names, ends, ends[1:], strict=False):
            yield ImageDetections(name, self.labels[start:end], self.scores[start:end], self.boxes[start:end])


def gather_detections(
    found: Iterable[ImageDetections], classes: Sequence[str], about: dict[str, Any] | None = None
) -> Detections:
    """Puts the detections of images together. Raises ValueError, with the name, for those that break `Detections`."""
    images = list(found)
    for one in images:
        _check(one, len(classes))
    if len({one.name for one in images}) != len(images):
        raise ValueError("detections: an image is there twice")
    return Detections(
        tuple(one.name for one in images),
        tuple(classes),
        np.repeat(np.arange(len(images)), [len(one.labels) for one in images]),
        np.concatenate([np.empty(0, np.int64), *(np.asarray(one.labels, np.int64) for one in images)]),
        np.concatenate([np.empty(0, np.float32), *(np.asarray(one.scores, np.float32) for one in images)]),
        np.concatenate([np.empty((0, 4), np.float32), *(np.asarray(one.boxes, np.float32) for one in images)]),
        about or {},
    )


def _check(one: ImageDetections, classes: int) -> None:
    """Raises ValueError unless labels, scores and boxes are those of `Detections`."""
    labels, scores, boxes = map(np.asarray, one[1:])
    k = len(labels)
    if labels.shape != (k,) or scores.shape != (k,) or boxes.shape != (k, 4):
        shapes = f"labels {labels.shape}, scores {scores.shape} and boxes {boxes.shape}"
        raise ValueError(printable(f"{one.name}: has {shapes}, must be (k,), (k,) and (k, 4)"))
    if k and not (np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0 and labels.max() < classes):
        raise ValueError(printable(f"{one.name}: has labels that are no whole numbers from 0 to {classes - 1}"))
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
        raise ValueError(printable(f"{one.name}: has scores or boxes that are not finite, or boxes inside out"))


# Files. The first line is {"about": ..., "classes": ..., "images": n}, every other one an image:
# {"name": ..., "labels": [...], "scores": [...], "boxes": [[x0, y0, x1, y1], ...]}.


def write_detections(
    path: Path, found: Iterable[ImageDetections], *, classes: Sequence[str], images: int, about: dict[str, Any]
) -> None:
    """Writes a file of JSON lines atomically, image by image: `found` may be a generator that detects.

    Args:
        path: the file.
        found: the detections of every image; a `Detections` is one, too.
        classes: what the labels index.
        images: how many images there are.
        about: plain values: where the detections come from.

    Raises ValueError for detections that break `Detections`, and if there are more or fewer images.
    """
    with atomic_file(path) as file:
        file.write(_line({"about": about, "classes": list(classes), "images": images}))
        count = 0
        for one in found:
            count += 1
            _check(one, len(classes))
            # A float32 in decimals of float64 comes back exactly.
            labels, scores, boxes = (np.asarray(array).tolist() for array in one[1:])
            file.write(_line({"name": one.name, "labels": labels, "scores": scores, "boxes": boxes}))
        if count != images:
            raise ValueError(f"{path}: detections of {count:,} images, must be of {images:,}")


def _line(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, separators=(',', ':'))}\n".encode()


def read_detections(path: Path) -> Detections:
    """Reads a file that `write_detections` wrote. Raises ValueError, naming file and line, for anything else."""
    found: list[ImageDetections] = []
    number = 1
    try:
        with path.open("rb") as file:
            about, classes, count = _read_header(next(file, b""))
            for line in file:
                number += 1
                found.append(_read_image(line))
                _check(found[-1], len(classes))
        if len(found) != count:
            raise ValueError(f"detections of {len(found):,} images, must be of {count}")
        return gather_detections(found, classes, about)
    except KeyError as error:
        raise ValueError(f"{path}:{number}: not a file of detections ({error} is missing)") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(printable(f"{path}:{number}: not a file of detections ({first_line(error)})")) from error


def read_detections_about(path: Path) -> dict[str, Any]:
    """Reads `Detections.about` alone. Raises ValueError, naming the file, if the first line is another one."""
    try:
        with path.open("rb") as file:
            about, _, _ = _read_header(next(file, b""))
        return about
    except KeyError as error:
        raise ValueError(f"{path}:1: not a file of detections ({error} is missing)") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(printable(f"{path}:1: not a file of detections ({first_line(error)})")) from error


def _read_header(line: bytes) -> tuple[dict[str, Any], list[str], Any]:
    first = json.loads(line)
    about, classes = first["about"], first["classes"]
    if (
        not isinstance(about, dict)
        or not isinstance(classes, list)
        or not all(isinstance(name, str) for name in classes)
    ):
        raise ValueError("about must be keys with values, and classes a list of text")
    return about, classes, first["images"]


def _read_image(line: bytes) -> ImageDetections:
    content = json.loads(line)
    if not isinstance(content["name"], str):
        raise ValueError("name must be text")
    labels, boxes = np.array(content["labels"]), np.array(content["boxes"], np.float32)
    if labels.dtype.kind not in ("i", "f" if not labels.size else "i"):
        raise ValueError("labels must be whole numbers")
    return ImageDetections(
        content["name"],
        labels.astype(np.int64),
        np.array(content["scores"], np.float32),
        boxes.reshape(len(boxes), 4),
    )


def write_voc_results(folder: Path, detections: Detections, split: str = "test") -> list[Path]:
    """Writes comp3_det_SPLIT_CLASS.txt for every class, as the VOC devkit reads them, and returns the files.

    A line is the image's name without folders and suffix, the score, and the box in VOC's pixels, which count from 1
    and include the last one: x0 + 1, y0 + 1, x1, y1.

    Raises ValueError if two images would have the same name.
    """
    names = [Path(name).stem for name in detections.names]
    if len(set(names)) != len(names):
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{repeated}: two images have this name, and VOC result files name images without folders")

    files = []
    boxes = detections.boxes + np.array([1.0, 1.0, 0.0, 0.0])
    for label, class_name in enumerate(detections.classes):
        files.append(folder / f"comp3_det_{split}_{class_name}.txt")
        with atomic_file(files[-1]) as file:
            for i in np.flatnonzero(detections.labels == label).tolist():
                numbers = " ".join(f"{value:.9g}" for value in (detections.scores[i], *boxes[i]))
                file.write(f"{names[detections.images[i]]} {numbers}\n".encode())
    return files


# Matching with the objects.


@dataclass(frozen=True, eq=False)
class Matches:
    """What became of every detection by the rule of PASCAL VOC.

    detections: which.
    positive: bool (K,), whether the detection found an object.
    ignored: bool (K,), whether it counts neither for nor against: it lies on a difficult object.
    objects: int64 (K,), the object of its class in its image that it overlaps most, as an index within the image, if
        the overlap reaches the threshold; else -1. A detection with an object that is neither positive nor ignored is a
        duplicate.
    overlaps: float64 (K,), the highest intersection over union with an object of its class in its image; 0 without.
    counts: int64 (n, classes), objects of each image that are not difficult.
    """

    detections: Detections
    positive: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray
    overlaps: np.ndarray
    counts: np.ndarray


def match_detections(detections: Detections, images: ObjectsByImage, threshold: float = 0.5) -> Matches:
    """Matches detections with the objects of their images, by the rule of VOCevaldet of the VOC devkit.

    Every detection looks at the object of its class in its image with which its intersection over union is highest, of
    equal ones the first. If that is below the threshold, it is wrong. If the object is difficult, it is ignored.
    Otherwise the detection of the highest score has found the object, and all others of the object are wrong, even if
    they overlap another one that nobody found. Of equal scores the box that comes first by (x0, y0, x1, y1) has found
    it; average precision does not depend on it, since `average_precision` takes equal scores together.

    Widths are those of half-open boxes, x1 - x0. The devkit's widths, xmax - xmin + 1 of pixels from 1 with the last
    one included, are the same numbers.

    Args:
        detections: of all images.
        images: the same images in the same order, with the same classes.
        threshold: the least intersection over union, above 0, at most 1.

    Raises ValueError if images or classes are others.
    """
    _check_images(detections, images)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be above 0 and at most 1")
    truth = _Truth.of(images)
    nearest, overlaps = _nearest_objects(detections, truth)
    reached = overlaps >= threshold

    ignored = np.zeros(len(detections), bool)
    ignored[reached] = truth.difficult[nearest[reached]]
    candidates = np.flatnonzero(reached & ~ignored)
    positive = np.zeros(len(detections), bool)
    positive[_first_of_each(candidates, nearest, detections)] = True

    objects = np.full(len(detections), -1)
    objects[reached] = (nearest - truth.starts[detections.images])[reached]
    counted = ~truth.difficult
    counts = np.zeros((len(images), len(images.classes)), np.int64)
    np.add.at(counts, (truth.images[counted], truth.labels[counted]), 1)
    return Matches(detections, positive, ignored, objects, overlaps, counts)


def _check_images(detections: Detections, images: ObjectsByImage) -> None:
    if detections.classes != tuple(images.classes):
        raise ValueError(f"detections of {len(detections.classes)} classes: the images have other ones")
    if len(detections.names) != len(images):
        raise ValueError(f"detections of {len(detections.names):,} images: must be of {len(images):,}")
    for i, name in enumerate(detections.names):
        if name != images.name(i):
            raise ValueError(printable(f"detections: image {i} is {name}, must be {images.name(i)}"))


class _Truth(NamedTuple):
    """The objects of all images, image after image."""

    boxes: np.ndarray  # float64 (N, 4)
    labels: np.ndarray  # int64 (N,)
    difficult: np.ndarray  # bool (N,)
    images: np.ndarray  # int64 (N,)
    starts: np.ndarray  # int64 (n,): the first object of each image

    @classmethod
    def of(cls, images: ObjectsByImage) -> "_Truth":
        every = [images.objects(i) for i in range(len(images))]
        lengths = np.array([len(objects) for objects in every], np.int64)
        return cls(
            np.concatenate([np.empty((0, 4)), *(objects.boxes for objects in every)]),
            np.concatenate([np.empty(0, np.int64), *(objects.labels for objects in every)]),
            np.concatenate([np.empty(0, bool), *(objects.difficult for objects in every)]),
            np.repeat(np.arange(len(images)), lengths),
            np.cumsum(lengths) - lengths,
        )


def _nearest_objects(detections: Detections, truth: _Truth) -> tuple[np.ndarray, np.ndarray]:
    """For every detection the object of its class and image with the highest overlap, and the overlap.

    Returns int64 (K,), an index in `truth`, -1 for none, and float64 (K,), 0 for none.
    """
    classes = len(detections.classes)
    groups = truth.images * classes + truth.labels  # objects of one group are those of one class in one image
    order = np.argsort(groups, kind="stable")
    group = detections.images * classes + detections.labels
    first, last = (np.searchsorted(groups[order], group, side=side) for side in ("left", "right"))

    nearest, overlaps = np.full(len(detections), -1), np.zeros(len(detections))
    for step in range(int((last - first).max(initial=0))):  # the next object of every group that has so many
        chosen = np.flatnonzero(first + step < last)
        objects = order[first[chosen] + step]
        overlap = _overlaps(detections.boxes[chosen].astype(np.float64), truth.boxes[objects])
        better = (overlap > overlaps[chosen]) | (step == 0)
        nearest[chosen[better]], overlaps[chosen[better]] = objects[better], overlap[better]
    return nearest, overlaps


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The intersection over union of each box with the other one in its row, float64 (K, 4) each: float64 (K,)."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = sides.clip(0).prod(axis=1)
    areas = [(these[:, 2:] - these[:, :2]).prod(axis=1) for these in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)


def _first_of_each(candidates: np.ndarray, nearest: np.ndarray, detections: Detections) -> np.ndarray:
    """Of the candidates for each object, the one of the highest score, of equal scores the first box."""
    x0, y0, x1, y1 = detections.boxes[candidates].T
    order = np.lexsort((y1, x1, y0, x0, -detections.scores[candidates], nearest[candidates]))
    ranked = candidates[order]
    _, first = np.unique(nearest[ranked], return_index=True)
    return ranked[first]


# Average precision.

_RESAMPLES = 200  # the standard deviation of a bootstrap is then known within 5 %


def class_precisions(matches: Matches, points: int | None = 11) -> np.ndarray:
    """Returns float (classes,): average precision per class, from 0 to 1; nan for classes without objects that count.

    Args:
        matches: of the detections.
        points: as of `sppnet.metrics.average_precision`: 11, or None for all.
    """
    once = np.ones(len(matches.counts), np.int64)
    return _precisions(matches, _ranked(matches), points, once)


def class_curves(matches: Matches, points: int = 101) -> np.ndarray:
    """Returns float (classes, points): the highest precision at each of the recalls 0 to 1, or more, per class.

    Nan for classes without objects that count. See `sppnet.metrics.interpolated_precision`.
    """
    scores, found = matches.detections.scores, matches.positive
    return np.array(
        [
            interpolated_precision(scores[of_class], found[of_class], int(count), points)
            for of_class, count in zip(_ranked(matches), matches.counts.sum(axis=0), strict=True)
        ]
    ).reshape(len(matches.detections.classes), points)


def mean_precision(matches: Matches, points: int | None = 11) -> float:
    """Returns the mean of `class_precisions` over the classes that have objects; nan if none has."""
    return mean_of_known(class_precisions(matches, points))


def resampled_precisions(matches: Matches, points: int | None = 11, resamples: int = _RESAMPLES) -> np.ndarray:
    """Returns float (resamples,): mean average precision on random images, drawn with replacement.

    For the same number of images the same ones are drawn, so two detectors on the same images are compared in pairs.
    An image that is drawn twice counts twice, with all its detections and objects.
    """
    n, ranked = len(matches.counts), _ranked(matches)
    draws = np.random.default_rng(0).integers(n, size=(resamples, n))
    times = (np.bincount(draw, minlength=n) for draw in draws)
    return np.array([mean_of_known(_precisions(matches, ranked, points, one)) for one in times])


def precision_interval(matches: Matches, points: int | None = 11) -> tuple[float, float]:
    """Returns the 95 % interval of mean average precision, as fractions in 0..1, by a bootstrap over images.

    It covers the choice of test images only: another training of the same detector would move it. The interval is the
    mean average precision with 1.96 standard deviations of `resampled_precisions` to either side.
    """
    mean, spread = mean_precision(matches, points), 1.96 * float(np.nanstd(resampled_precisions(matches, points)))
    return max(0.0, mean - spread), min(1.0, mean + spread)


def _ranked(matches: Matches) -> list[np.ndarray]:
    """For every class, the indices of the detections that decide its average precision, in the order of their scores.

    Those that score less than every positive one are left out: they lower the precision and add no recall.
    """
    labels, scores = matches.detections.labels, matches.detections.scores
    ranked = []
    for label in range(len(matches.detections.classes)):
        of_class = np.flatnonzero((labels == label) & ~matches.ignored)
        found = of_class[matches.positive[of_class]]
        useful = of_class[scores[of_class] >= scores[found].min(initial=np.inf)]
        ranked.append(useful[np.argsort(-scores[useful], kind="stable")])
    return ranked


def _precisions(matches: Matches, ranked: list[np.ndarray], points: int | None, times: np.ndarray) -> np.ndarray:
    """Average precision per class where each image counts `times` (n,) times."""
    values = []
    for of_class, count in zip(ranked, times @ matches.counts, strict=True):
        chosen = np.repeat(of_class, times[matches.detections.images[of_class]])
        scores, positive = matches.detections.scores[chosen], matches.positive[chosen]
        values.append(average_precision(scores, positive, int(count), points=points))
    return np.array(values)


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean of what is not nan; nan if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
