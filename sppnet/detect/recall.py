"""Recall of proposals: the share of objects that some window overlaps well enough to find them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from sppnet.results.statistics import wilson_interval


class Recall(NamedTuple):
    """The share of objects that proposals find, at most what a detector that scores them can find."""

    threshold: float  # IoU
    found: int  # objects that a window overlaps by `threshold` or more
    objects: int
    share: float  # found / objects
    low: float  # 95 % interval of the share (Wilson)
    high: float


def recall(
    windows: Iterable[np.ndarray],
    boxes: Iterable[np.ndarray],
    difficult: Iterable[np.ndarray],
    thresholds: Sequence[float] = (0.5, 0.7),
) -> list[Recall]:
    """Computes the share of objects with an IoU of at least each of `thresholds` with one of their image's windows.

    Args:
        windows: (K, 4) of every image, half-open (x0, y0, x1, y1).
        boxes: (k, 4) of every image: the objects.
        difficult: bool (k,) of every image: objects that are left out.
        thresholds: of the IoU, above 0 and up to 1.

    Raises ValueError for other thresholds, different numbers of images, and if no objects are left.
    """
    if not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds={list(thresholds)}: must be above 0 and at most 1")
    best = [
        _best_overlaps(proposed, objects[~ignored])
        for proposed, objects, ignored in zip(windows, boxes, difficult, strict=True)
    ]
    overlaps = np.concatenate([*best, np.empty(0)])
    if not len(overlaps):
        raise ValueError("recall: the images have no objects that are not difficult")

    found = [int((overlaps >= threshold).sum()) for threshold in thresholds]
    return [
        Recall(threshold, count, len(overlaps), count / len(overlaps), *wilson_interval(count, len(overlaps)))
        for threshold, count in zip(thresholds, found, strict=True)
    ]


def _best_overlaps(windows: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The largest IoU of every object with a window: (K, 4), (k, 4) -> float64 (k,), 0 without windows."""
    if not len(windows):
        return np.zeros(len(objects))
    overlaps = box_iou(torch.from_numpy(objects.astype(float)), torch.from_numpy(windows.astype(float)))
    return np.asarray(overlaps.amax(dim=1))
