"""The course of training runs, from their records, for plots."""

import math
import statistics
from collections.abc import Sequence

from sppnet.results.plots import Estimate
from sppnet.results.records import Epoch
from sppnet.results.report_plots import TrainingCurve
from sppnet.results.runs import Run
from sppnet.results.statistics import counts_interval


def training_curve(label: str, runs: Sequence[Run]) -> TrainingCurve:
    """Returns the course of finished runs that differ in seed only. Epochs that a run does not record are left out.

    Args:
        label: of the network.
        runs: the runs.
    """
    histories = [_by_epoch(run.result.history) for run in runs if run.result is not None]
    validation_losses = [_validation_losses(history) for history in histories]
    return TrainingCurve(label, list(map(_losses, histories)), validation_losses, _validations(histories))


def _by_epoch(history: Sequence[Epoch]) -> dict[int, Epoch]:
    return {epoch.epoch or i: epoch for i, epoch in enumerate(history, start=1)}


def _losses(history: dict[int, Epoch]) -> dict[int, tuple[float, bool]]:
    """Returns by epoch: training loss, and whether its size was the largest of the run."""
    largest = max(epoch.size or 0 for epoch in history.values())
    return {
        number: (epoch.train_loss, (epoch.size or largest) == largest)
        for number, epoch in history.items()
        if epoch.train_loss is not None and math.isfinite(epoch.train_loss)
    }


def _validation_losses(history: dict[int, Epoch]) -> dict[int, float]:
    losses = {number: epoch.val_loss for number, epoch in history.items() if epoch.val_loss is not None}
    return {number: loss for number, loss in losses.items() if math.isfinite(loss)}


def _validations(histories: Sequence[dict[int, Epoch]]) -> dict[int, Estimate]:
    """Returns by epoch the top-1 error on the validation images, the mean over the runs, where all have it."""
    validations = {}
    for number in sorted(set[int]().union(*histories)):
        epochs = [history.get(number) for history in histories]
        counts = [(epoch.top1_wrong, epoch.n) for epoch in epochs if epoch is not None]
        wrong = [count for count, n in counts if count is not None and n is not None]
        if len(wrong) == len(histories) and len({n for _, n in counts}) == 1:
            n = counts[0][1] or 1
            errors = statistics.mean(wrong) / n
            validations[number] = Estimate.of(errors, counts_interval(wrong, n))
    return validations
