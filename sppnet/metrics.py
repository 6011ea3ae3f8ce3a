"""Top-k error."""

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


def count_wrong(scores: Tensor, labels: Tensor) -> Tensor:
    """(3,) int64 on the device of `scores`: images wrong by top-1, wrong by top-5, and images in all."""
    counts = [top_k_wrong(scores, labels, 1).sum(), top_k_wrong(scores, labels, 5).sum()]
    return torch.stack([*counts, torch.tensor(len(labels), device=scores.device)])
