"""Calibration: whether images with a highest score of 0.8 are classified rightly in 80 % of the cases."""

import math
from typing import NamedTuple

import numpy as np

from sppnet.results.comparisons import wrong
from sppnet.results.scores import Scores

BINS = 15  # of equal width, as in Guo et al. (2017), arXiv:1706.04599
_DRAWS = 200  # the mean is then known within 3 % of itself


class Calibration(NamedTuple):
    """The highest scores of images, in bins of equal width, beside how often they are right.

    counts: int64 (BINS,), the images of each bin; bin b holds highest scores from b / BINS on.
    right: int64 (BINS,), those of them that are classified rightly.
    scores: float64 (BINS,), the mean highest score of each bin; nan without images.
    error: the expected calibration error, a fraction: the mean over images of how far the share of right ones of their
        bin is from the mean highest score of their bin.
    chance: the expected calibration error that scores which are true probabilities would have on as many images with
        these highest scores, a mean, and what it would exceed in 5 % of such tests.
    excess: mean highest score minus the share of images classified rightly, a fraction; positive: overconfident.
    excess_interval: its 95 % interval over images.
    """

    counts: np.ndarray
    right: np.ndarray
    scores: np.ndarray
    error: float
    chance: tuple[float, float]
    excess: float
    excess_interval: tuple[float, float]


def are_probabilities(scores: Scores) -> bool:
    """Whether the scores of every image are at least 0 and add up to 1."""
    values = scores.scores
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3))


def calibration(scores: Scores) -> Calibration:
    """Compares the highest score of each image with how often such images are classified rightly.

    Raises ValueError unless images have one label each.
    """
    highest = scores.scores.max(axis=1).astype(float)
    right = ~wrong(scores)
    bins = np.minimum((highest * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = np.bincount(bins, highest, minlength=BINS)
    right_counts = np.bincount(bins, right, minlength=BINS).astype(np.int64)

    difference = highest - right
    # At least the variance of `gain_interval`: with one image, or where all are alike, it must not have width 0.
    spread = 1.96 * math.sqrt(max(float(difference.var()) / len(right), 2 / len(right) ** 2))
    excess = float(difference.mean())
    return Calibration(
        counts,
        right_counts,
        np.divide(sums, counts, out=np.full(BINS, np.nan), where=counts > 0),
        _error(bins, difference),
        _chance(bins, highest),
        excess,
        (max(-1.0, excess - spread), min(1.0, excess + spread)),
    )


def _error(bins: np.ndarray, difference: np.ndarray) -> float:
    """Returns the expected calibration error, by the differences of highest score and being right of every image."""
    return float(np.abs(np.bincount(bins, difference)).sum() / len(difference))


def _chance(bins: np.ndarray, highest: np.ndarray) -> tuple[float, float]:
    random = np.random.default_rng(0)
    errors = [_error(bins, highest - (random.random(len(highest)) < highest)) for _ in range(_DRAWS)]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))
