"""Top-k error."""

import torch
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
    return torch.stack([*counts, torch.tensor(len(labels), device=scores.device)])
