"""Overlaps of windows with the objects of an image, and what they make of windows in training.

Letters: K windows, k objects. Boxes are half-open: x0, y0, x1, y1 in pixels.
"""

import numpy as np
import torch
from torchvision.ops import box_iou

from sppnet.data.objects import Objects


def overlaps(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the intersections over unions of windows (K, 4) and boxes (k, 4): float64 (K, k), from 0 to 1."""
    return box_iou(_tensor(windows), _tensor(boxes)).numpy()


def _tensor(boxes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(boxes, np.float64).reshape(-1, 4))


def best_overlaps(windows: np.ndarray, objects: Objects, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each window's highest overlap with an object of each class, and the index of that object.

    Returns float64 (K, classes), 0 for classes without objects, and int64 (K, classes), -1 where the overlap is 0. Of
    equally good objects, the first.
    """
    highest, nearest = np.zeros((len(windows), classes)), np.full((len(windows), classes), -1)
    of_objects = overlaps(windows, objects.boxes)
    for label in np.unique(objects.labels):
        indices = np.flatnonzero(objects.labels == label)
        own = of_objects[:, indices]
        highest[:, label] = own.max(axis=1)
        nearest[:, label] = np.where(highest[:, label] > 0, indices[own.argmax(axis=1)], -1)
    return highest, nearest
