"""Finds a learning rate: trains two hundred steps at rising rates, and looks where the loss is lowest.

The idea is that of Smith 2017 (arXiv:1506.01186, §3.3). The trained weights are thrown away, and no run is touched.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from pytorch_lightning import Trainer

from sppnet.classify.classifier import Classifier
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.rates import highest_rate
from sppnet.classify.training import prepared, trainer_options
from sppnet.data.sources import ImageData
from sppnet.lightning_checkpoints import silence_lightning
from sppnet.network import SPPNet
from sppnet.results.plots import COLORS, GRID_COLOR, NEUTRAL_COLOR, empty_axes
from sppnet.runtime.processes import explained_loader_failures

_STEPS, _LOWEST, _HIGHEST = 200, 1e-5, 10.0  # the rates rise by the same factor at every step
_SMOOTHING = 0.95  # share of the old mean that a step keeps
_DIVERGED = 3.0  # times the lowest mean loss, at which the search ends
_FIRST = 20  # steps at the lowest rates, which teach nothing


class RateSearch(NamedTuple):
    """The rates that were tried, in rising order, and the loss of every step before it was taken."""

    rates: list[float]
    losses: list[float]

    @property
    def means(self) -> list[float]:
        """The running mean of the losses, without the bias towards 0 of its first steps."""
        means, total = [], 0.0
        for i, loss in enumerate(self.losses, start=1):
            total = _SMOOTHING * total + (1 - _SMOOTHING) * loss
            means.append(total / (1 - _SMOOTHING**i))
        return means

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate at which the mean loss is lowest; None if it never falls.

        Where the loss falls fastest is often chance: the noise of single batches at the lowest rates is larger.
        """
        lowest = int(np.argmin(self.means)) if self.losses else 0
        return None if lowest < _FIRST else self.rates[lowest] / 10


class _RisingRates(Classifier):
    """Trains at rates that rise at every step, and records the losses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.search = RateSearch([], [])

    def learning_rate(self) -> float:
        return float(_LOWEST * (_HIGHEST / _LOWEST) ** (self.global_step / (_STEPS - 1)))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = float(self.trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean"))
        if math.isfinite(loss):
            self.search.rates.append(self.current_rate)
            self.search.losses.append(loss)
        means = self.search.means
        if not math.isfinite(loss) or means[-1] > _DIVERGED * min(means):
            self.trainer.should_stop = True

    def _check_finite(self) -> None:
        """Checks nothing: at the highest rates the loss is not expected to be finite."""


def search_rate(plan: TrainingPlan, network: SPPNet, data: ImageData) -> RateSearch:
    """Trains `network` at rising rates, until the loss rises far, and returns the losses. Writes nothing.

    Raises ValueError for settings that do not fit the data or the machine, and if already the first loss is not finite.
    """
    silence_lightning()
    plan = dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, cache=0))  # few images come twice
    classifier, data_module = prepared(plan, network, data, _RisingRates)
    assert isinstance(classifier, _RisingRates)
    trainer = Trainer(
        **trainer_options(plan),
        max_epochs=-1,
        max_steps=_STEPS,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
    )
    with explained_loader_failures("trainer.workers"):
        trainer.fit(classifier, datamodule=data_module)
    if not classifier.search.rates:
        raise ValueError(f"the loss of the first step, at rate {_LOWEST:g}, is not finite; check recipe.input_std")
    return classifier.search


def suggested_setting(search: RateSearch, plan: TrainingPlan) -> str | None:
    """Returns the override for the suggested rate, "recipe.learning_rate=0.02"; None if there is no suggestion."""
    if search.suggestion is None:
        return None
    own = search.suggestion * plan.recipe.learning_rate / highest_rate(plan.recipe)
    return f"recipe.learning_rate={own:.2g}"


def rate_plot(search: RateSearch, present: float) -> Any:
    """Plots the losses, their running mean and the suggestion over the rates: a `matplotlib.figure.Figure`.

    `present`: the highest rate of the plan.
    """
    figure, axes = empty_axes(height=4.0)
    axes.semilogx(search.rates, search.losses, ".", color=COLORS[0], alpha=0.4, label="loss of a step")
    axes.semilogx(search.rates, search.means, color=COLORS[0], label="running mean")
    if search.suggestion is not None:
        axes.axvline(search.suggestion, color=COLORS[1], label=f"suggestion: {search.suggestion:.2g}")
    axes.axvline(present, color=NEUTRAL_COLOR, linestyle=":", label=f"present rate: {present:.2g}")
    first, lowest = max(search.losses[:_FIRST]), min(search.means)
    axes.set_ylim(lowest - (first - lowest), first + (first - lowest) / 2)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")  # not as formulas, which `empty_axes` switches off
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(color=GRID_COLOR)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return figure
