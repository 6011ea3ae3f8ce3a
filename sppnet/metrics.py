"""Top-k error, its confidence interval, and whether two errors differ."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def top_k_wrong(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """(N,) bool: whether the true class is missing among the k highest scores.

    Args:
        scores: (N, classes), logits or probabilities.
        labels: (N,) integers.
        k: more than there are classes counts as all of them, so that nothing is wrong then.

    A score equal to the true class's counts against it, so that constant scores are wrong and not lucky; so does a
    score that is not a number.
    """
    true = scores.gather(1, labels[:, None])
    # True for every class that the true one does not clearly beat, itself included.
    ahead = (~(scores < true)).sum(dim=1)
    return ahead > min(k, scores.shape[1])


def wilson_interval(wrong: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of an error measured on n images, as fractions in 0..1 (Wilson 1927).

    Raises ValueError unless 0 <= wrong <= n and n >= 1.
    """
    if not 0 <= wrong <= n or n < 1:
        raise ValueError(f"wrong={wrong}, n={n}: must be 0 <= wrong <= n and n >= 1")
    rate = wrong / n
    center = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


class PairedTest(NamedTuple):
    """Two networks on the same images: McNemar's test."""

    only_first: int  # images that only the first gets wrong
    only_second: int
    n: int
    difference: float  # first error minus second, a fraction
    low: float  # 95 % interval of the difference
    high: float
    p: float  # two-sided, exact: how often chance alone splits the only_* images at least as unevenly


def paired_test(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Compares two networks by which images each got wrong, bool (n,) each. ValueError unless n agrees and is >= 1."""
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"{first.shape} and {second.shape} images: must be the same ones, and at least one")
    n, a, b = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    p = min(1.0, float(Fraction(2 * tail, 2 ** (a + b))))
    difference = (a - b) / n
    spread = 1.959964 * math.sqrt(max(0.0, a + b - (a - b) ** 2 / n)) / n
    return PairedTest(a, b, n, difference, difference - spread, difference + spread, p)


def gain_interval(baseline: np.ndarray, other: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean error of `baseline` minus that of `other`, over images and over training runs.

    Bootstrap: images (the same for both) and the runs of each are drawn with replacement. With few runs it is narrower
    than it should be, by a factor of about sqrt((k - 1) / k) in the part that comes from the runs.

    Args:
        baseline, other: bool (runs, n), which images each run got wrong; n agrees, the number of runs need not.
    """
    if baseline.shape[1] != other.shape[1]:
        raise ValueError(f"{baseline.shape[1]} and {other.shape[1]} images: must be the same ones")
    random = np.random.default_rng(seed)
    n, differences = baseline.shape[1], []
    both = np.concatenate([baseline, other]).astype(np.float32)
    for _ in range(draws):
        # How often each image is drawn; the mean error of every run over that draw.
        errors = both @ np.bincount(random.integers(n, size=n), minlength=n).astype(np.float32) / n
        first, second = errors[: len(baseline)], errors[len(baseline) :]
        drawn = (runs[random.integers(len(runs), size=len(runs))].mean() for runs in (first, second))
        differences.append(next(drawn) - next(drawn))
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def count_wrong(scores: Tensor, labels: Tensor) -> Tensor:
    """(3,) int64 on the device of `scores`: images wrong by top-1, wrong by top-5, and images in all."""
    counts = [top_k_wrong(scores, labels, 1).sum(), top_k_wrong(scores, labels, 5).sum()]
    return torch.stack([*counts, torch.tensor(len(labels), device=scores.device)])
