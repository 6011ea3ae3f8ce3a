"""Top-k error and its confidence interval."""

import math

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


def count_wrong(scores: Tensor, labels: Tensor) -> Tensor:
    """(3,) int64 on the device of `scores`: images wrong by top-1, wrong by top-5, and images in all."""
    counts = [top_k_wrong(scores, labels, 1).sum(), top_k_wrong(scores, labels, 5).sum()]
    return torch.stack([*counts, torch.tensor(len(labels), device=scores.device)])
