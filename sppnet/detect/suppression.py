"""Detections of scored windows: the highest scores of each class, without others that overlap them.

Letters: K windows of an image, C classes, D detections.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms


@dataclass(frozen=True, kw_only=True)
class SuppressionSettings:
    """What becomes of the scores of windows: the `test` section. Raises ValueError for values out of range.

    The suppression is the paper's (arXiv:1406.4729v4, §4.1), the score and the number those of its release.
    """

    least_score: float = -1.5  # windows below are no detections
    suppression_overlap: float = 0.3  # of two detections of a class that overlap more, only the higher stays
    most: int = 100  # detections per image and class

    def __post_init__(self) -> None:
        if not 0 <= self.suppression_overlap <= 1:
            raise ValueError(f"test.suppression_overlap={self.suppression_overlap}: must be from 0 to 1")
        if self.most < 1:
            raise ValueError(f"test.most={self.most}: must be at least 1")


class DetectedBoxes(NamedTuple):
    """The detected boxes of one image, highest score first.

    boxes: float32 (D, 4), x0, y0, x1, y1 in pixels, half-open.
    labels: int64 (D,).
    scores: float32 (D,), decision values of the SVMs.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def detect(scores: Tensor, windows: Tensor, settings: SuppressionSettings) -> tuple[DetectedBoxes, Tensor]:
    """Makes detections of scored windows, class by class.

    Args:
        scores: float32 (K, C).
        windows: (K, 4) in pixels.
        settings: the limits.

    Returns the detections, and the window of each, int64 (D,).
    """
    window, label = (scores >= settings.least_score).nonzero(as_tuple=True)
    values, boxes = scores[window, label], windows[window].float()
    kept = suppressed(boxes, values, label, settings)
    return DetectedBoxes(boxes[kept], label[kept], values[kept]), window[kept]


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, settings: SuppressionSettings) -> Tensor:
    """Returns the indices of detections that stay: int64, highest score first, at most so many of a class."""
    kept = batched_nms(boxes, scores, labels, settings.suppression_overlap)
    # The rank of each in its class, all classes at once: on a GPU, every mask of a class would make the host wait.
    by_class, order = labels[kept].sort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=kept.device) - torch.searchsorted(by_class, by_class)
    return kept[ranks < settings.most]
