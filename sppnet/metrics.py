"""Top-k error and average precision."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def top_k_wrong(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Returns (N,) bool: whether the true class is missing among the k highest scores.

    A score equal to that of the true class counts against it, so that constant scores are wrong and not lucky. So does
    a score that is not a number.

    Args:
        scores: (N, classes), logits or probabilities.
        labels: (N,) integers.
        k: more than the number of classes counts as all classes; nothing is wrong then.
    """
    true = scores.gather(1, labels[:, None])
    # How many classes the true one does not clearly beat, itself included.
    ahead = (~(scores < true)).sum(dim=1)
    return ahead > min(k, scores.shape[1])


def count_wrong(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns (3,) int64 on the device of `scores`: images wrong by top-1, images wrong by top-5, all images."""
    counts = [top_k_wrong(scores, labels, 1).sum(), top_k_wrong(scores, labels, 5).sum()]
    # `torch.tensor` would copy the number from the host, which would wait for the device in every step of validation.
    return torch.stack([*counts, torch.full((), len(labels), device=scores.device)])


def average_precision(scores: ArrayLike, positive: ArrayLike, count: int, points: int | None = 11) -> float:
    """Returns the average precision of a ranking by the rules of PASCAL VOC, from 0 to 1; NaN if `count` is 0.

    Precision and recall are taken at every distinct score, where all items of equal score enter together, so that the
    value does not depend on their order. The devkit instead ranks equal scores in the order of its files; without equal
    scores both agree. scikit-learn's `average_precision_score` does not interpolate and has other values.

    Args:
        scores: (n,) numbers, higher for items more likely to be positive.
        positive: (n,) bool, which items are true positives.
        count: how many positives there are to find: as many as in `positive`, or more if the ranking lacks some, as in
            detection.
        points: 11 for the mean, over the recalls 0, 0.1, ..., 1, of the highest precision at that recall or more (VOC
            2007); None for the area under that curve over all recalls (VOC 2010 and later).

    Raises ValueError for other shapes, types or `points`, for NaN among the scores, and if `count` is less than the
    number of positives.
    """
    if points not in (11, None):
        raise ValueError(f"points={points}: must be 11 or None")
    if points == 11:
        return float(interpolated_precision(scores, positive, count, points).mean())
    found, highest = _highest_precision(scores, positive, count)
    return float(np.sum(np.diff(found, prepend=0) * highest) / count) if count else float("nan")


def interpolated_precision(scores: ArrayLike, positive: ArrayLike, count: int, points: int) -> np.ndarray:
    """Returns float (points,): the highest precision at recalls from 0 to 1 in equal steps, or at any higher recall.

    It is 0 at recalls that the ranking does not reach, and nan if `count` is 0. With 11 points its mean is the average
    precision of VOC 2007.

    Args:
        scores, positive, count: as of `average_precision`.
        points: how many recalls, at least 2.

    Raises ValueError as `average_precision` does.
    """
    if points < 2:
        raise ValueError(f"points={points}: must be at least 2")
    found, highest = _highest_precision(scores, positive, count)
    if count == 0:
        return np.full(points, np.nan)
    # recall >= k / 10 in integers: 3 / 10 and 0.1 * 3 are different floating-point numbers.
    reached = np.searchsorted((points - 1) * found, np.arange(points) * count)
    return np.asarray(np.append(highest, 0.0)[reached])


def _highest_precision(scores: ArrayLike, positive: ArrayLike, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks by score, and returns for every distinct score, from the highest on, two numbers.

    found: int64, how many positives have this score or a higher one.
    highest: float, the highest precision where as many positives or more are found.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive)
    _check_ranking(scores, positive, count)
    order = np.argsort(-scores)
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]  # whether it ends the items of its score
    retrieved = np.flatnonzero(last) + 1
    found = np.cumsum(positive[order], dtype=np.int64)[last]
    return found, np.maximum.accumulate((found / retrieved)[::-1])[::-1]


def _check_ranking(scores: np.ndarray, positive: np.ndarray, count: int) -> None:
    """Raises ValueError for arguments of `average_precision` that cannot be used."""
    if scores.ndim != 1 or positive.shape != scores.shape:
        raise ValueError(f"scores {scores.shape} and positive {positive.shape}: must both be (n,)")
    if len(positive) and positive.dtype != bool:
        raise ValueError(f"positive: has the type {positive.dtype}, must be bool")
    if np.isnan(scores).any():
        raise ValueError(f"scores: {np.isnan(scores).sum()} of {len(scores)} are NaN, which cannot be ranked")
    if count < (positives := np.count_nonzero(positive)):
        raise ValueError(f"count={count}: must be at least {positives}, the number of positive items")
