"""Notices a loss or weights that are not finite any more."""

from collections.abc import Iterable

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor


def not_finite(strategy: Strategy, weights: Iterable[Tensor], loss: Tensor) -> str | None:
    """Returns "the loss is" or "weights are" if they are not finite in any process, else None.

    Every process has to call it, and gets the same answer: if some continued, they would wait for the others forever.
    """
    all_weights = torch.stack([w.isfinite().all() for w in weights]).all()
    bad = (~torch.stack([loss.isfinite(), all_weights])).int()
    bad_losses, bad_weights = strategy.reduce(bad, reduce_op="sum").tolist()
    if bad_losses:
        return "the loss is"
    return "weights are" if bad_weights else None
