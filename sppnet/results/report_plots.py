"""Plots of the pages of a report: learning curves, errors by class, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sppnet.results.calibration import BINS, Calibration
from sppnet.results.plots import COLORS, GRID_COLOR, NEUTRAL_COLOR, Estimate, bar_lengths, empty_axes, percent_limits
from sppnet.results.statistics import wilson_interval


class TrainingCurve(NamedTuple):
    """The course of one network's training runs, which differ in seed only."""

    label: str
    runs: list[dict[int, tuple[float, bool]]]  # by epoch: training loss, and whether its size was the largest
    validation_losses: list[dict[int, float]]  # of each run, by epoch
    validations: dict[int, Estimate]  # by epoch: top-1 error, the mean over the runs


def has_validation_losses(curve: TrainingCurve) -> bool:
    """Whether any run of a curve recorded its loss in validation."""
    return any(curve.validation_losses)


def learning_curves(curves: Sequence[TrainingCurve]) -> Any:
    """Plots training loss and validation error by epoch: a line per run, and one per network through its errors.

    Epochs at less than the largest size of their run have a hollow marker.
    """
    from matplotlib.ticker import MaxNLocator

    figure, losses = empty_axes(height=6.4)
    losses.set_subplotspec(figure.add_gridspec(2, 1, hspace=0.12)[0])
    errors = figure.add_subplot(2, 1, 2, sharex=losses)
    for i, curve in enumerate(curves):
        style = {"color": COLORS[i % len(COLORS)], "linestyle": "--" if i >= len(COLORS) else "-"}
        for run in curve.runs:
            _plot_losses(losses, run, style)
        for of_run in filter(None, curve.validation_losses):
            losses.plot(list(of_run), list(of_run.values()), linewidth=1, alpha=0.8, **style | {"linestyle": ":"})
        epochs = sorted(curve.validations)
        estimates = [curve.validations[epoch] for epoch in epochs]
        values, bars = [one.value for one in estimates], bar_lengths(estimates)
        shift = 0.08 * (i - (len(curves) - 1) / 2)  # so that bars do not hide each other
        errors.errorbar(
            [epoch + shift for epoch in epochs],
            values,
            bars,
            marker="o",
            markersize=4,
            elinewidth=1,
            label=curve.label,
            **style,
        )

    losses.set_ylabel("loss in training" + "\n(dotted: in validation)" * any(map(has_validation_losses, curves)))
    losses.tick_params(labelbottom=False)
    errors.set_xlabel("epoch")
    errors.xaxis.set_major_locator(MaxNLocator(integer=True))
    errors.set_ylabel("validation top-1 error in %\n(bars: 95 % intervals)")
    ends = [x for curve in curves for one in curve.validations.values() for x in one]
    errors.set_ylim(percent_limits(ends or [0.0]))
    errors.spines[["top", "right"]].set_visible(False)
    for axes in (losses, errors):
        axes.grid(color=GRID_COLOR)
    handles, labels = errors.get_legend_handles_labels()
    if len(curves) > 1:
        figure.legend(
            handles, labels, frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 0.89), ncols=2
        )
    return figure


def _plot_losses(axes: Any, run: Mapping[int, tuple[float, bool]], style: Mapping[str, str]) -> None:
    """Draws the loss of a run, with a hollow marker at each epoch of a smaller size."""
    epochs = sorted(run)
    axes.plot(epochs, [run[epoch][0] for epoch in epochs], linewidth=1, alpha=0.8, **style)
    small = [epoch for epoch in epochs if not run[epoch][1]]
    marker = {"markerfacecolor": "white", "markersize": 3.5, "color": style["color"], "markeredgewidth": 0.9}
    axes.plot(small, [run[epoch][0] for epoch in small], "o", **marker)


def class_errors(rates: Sequence[tuple[str, Estimate]], mean: float, left_out: int | None = None) -> Any:
    """Plots the error of every class, a row each, with its interval, and a line at the error of all images.

    Args:
        rates: class and error, in the order of the rows.
        mean: the error of all images in %.
        left_out: the row before which some classes are left out; None: all are there.
    """
    figure, axes = empty_axes(height=0.8 + 0.19 * len(rates))
    axes.axvline(mean, color=COLORS[1], linewidth=1.2)
    for row, (_, rate) in enumerate(rates):
        axes.plot([rate.low, rate.high], [row] * 2, "-", color=COLORS[0], linewidth=1, alpha=0.7)
        axes.plot([rate.value], [row], "o", color=COLORS[0], markersize=4)
    if left_out is not None:
        axes.axhline(left_out - 0.5, color=NEUTRAL_COLOR, linestyle=":", linewidth=1)

    axes.set_yticks(range(len(rates)), [name for name, _ in rates], fontsize=8)
    axes.set_ylim(len(rates) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("top-1 error in % (line: 95 % interval; orange: all images)")
    axes.grid(axis="x", color=GRID_COLOR)
    return figure


def reliability(result: Calibration) -> Any:
    """Plots the share of images classified rightly against the mean highest score, by bin, and the images of each."""
    from matplotlib.ticker import MaxNLocator

    figure, shares = empty_axes(height=5.6)
    grid = figure.add_gridspec(2, 1, height_ratios=[3, 1], hspace=0.1)
    shares.set_subplotspec(grid[0])
    counts = figure.add_subplot(grid[1], sharex=shares)
    filled = result.counts > 0
    right, n = result.right[filled], result.counts[filled]
    estimates = [Estimate.of(r / c, wilson_interval(int(r), int(c))) for r, c in zip(right, n, strict=True)]

    shares.plot([0, 100], [0, 100], "--", color=NEUTRAL_COLOR, linewidth=1)
    bars = bar_lengths(estimates)
    style = {"color": COLORS[0], "marker": "o", "markersize": 5, "capsize": 3, "elinewidth": 1}
    shares.errorbar(100 * result.scores[filled], [one.value for one in estimates], bars, **style)
    shares.set_ylabel("classified rightly in %\n(bars: 95 % intervals)")
    shares.set(xlim=(0, 100), ylim=(-2, 102))
    shares.tick_params(labelbottom=False)

    middles = 100 * (np.arange(BINS) + 0.5) / BINS
    counts.bar(middles, result.counts, 0.9 * 100 / BINS, color=COLORS[0], alpha=0.6)
    counts.set_xlabel("highest score in %")
    counts.set_ylabel("images")
    counts.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    counts.spines[["top", "right"]].set_visible(False)
    for axes in (shares, counts):
        axes.grid(color=GRID_COLOR)
        axes.set_axisbelow(True)
    return figure


def count_bars(names: Sequence[str], counts: Mapping[str, Sequence[float]], quantity: str, title: str = "") -> Any:
    """Plots numbers by name: a row per name, with a bar per series.

    Args:
        names: of the rows.
        counts: series -> a number per name.
        quantity: what is counted.
        title: what the names are.
    """
    figure, axes = empty_axes(height=0.9 + (0.16 + 0.1 * len(counts)) * len(names))
    thickness = 0.8 / len(counts)
    for i, (label, values) in enumerate(counts.items()):
        rows = [row + thickness * (i - (len(counts) - 1) / 2) for row in range(len(names))]
        axes.barh(rows, values, thickness, color=COLORS[i % len(COLORS)], label=label)

    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(quantity)
    axes.set_ylabel(title)
    axes.grid(axis="x", color=GRID_COLOR)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(counts))
    return figure


def sorted_counts(counts: Mapping[str, Sequence[int]]) -> Any:
    """Plots the numbers of images of many classes, from the largest class to the smallest: a line per split."""
    figure, axes = empty_axes(height=3.2)
    for i, (label, values) in enumerate(counts.items()):
        axes.step(range(1, len(values) + 1), sorted(values, reverse=True), where="mid", color=COLORS[i], label=label)
    axes.set_xlabel("classes, the largest first")
    axes.set_ylabel("images")
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID_COLOR)
    axes.legend(frameon=False, fontsize=9)
    return figure
