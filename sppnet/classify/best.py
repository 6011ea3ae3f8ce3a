"""The best epoch of a run, and when it stops early: pure functions of the history, so that resumed runs agree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sppnet.runtime.names import counted


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the index of the epoch with the lowest validation error, None before the first validation.

    Of epochs with equal errors it is the one with the lower validation loss, and of those the first.

    Args:
        history: that of `sppnet.classify.classifier.Classifier`; epochs without "n" were not validated.
    """
    validated = [i for i, epoch in enumerate(history) if "n" in epoch]
    return min(validated, key=lambda i: (_error(history[i]), history[i].get("val_loss", math.inf)), default=None)


def stop_reason(history: Sequence[Mapping[str, Any]], patience: int | None) -> str | None:
    """Returns why training stops early after these epochs, None if it does not.

    It stops after `patience` epochs in a row without a new lowest validation error; if that is None, never.
    """
    errors = [_error(epoch) for epoch in history if "n" in epoch]
    if patience is None or not errors:
        return None
    waited = len(errors) - 1 - errors.index(min(errors))
    if waited < patience:
        return None
    return f"no lower validation error in {counted(waited, 'epoch')} (recipe.stop_patience)"


def result_epoch(history: Sequence[Mapping[str, Any]], epochs: int, patience: int | None) -> int | None:
    """Returns the index of the epoch whose network is the result of a run, None if the run is not finished.

    It is the last of `epochs`, or the best one of a run that stops early.
    """
    if len(history) == epochs:
        return epochs - 1 if "n" in history[-1] else None
    return best_epoch(history) if stop_reason(history, patience) else None


def _error(epoch: Mapping[str, Any]) -> float:
    return float(epoch["top1_wrong"] / epoch["n"])
