"""Average precision by the rule of PASCAL VOC: detections matched with the objects of a test set.

Letters: n images, K detections in all of them. Boxes are half-open: x0, y0, x1, y1 in pixels counted from 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sppnet.data.objects import ObjectsByImage
from sppnet.metrics import average_precision, interpolated_precision
from sppnet.results.detections import Detections
from sppnet.runtime.names import printable


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
