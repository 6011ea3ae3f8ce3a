"""Plots for the result pages, each a `matplotlib.figure.Figure` made without a window."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sppnet.runtime.overrides import hydra_value

# Okabe and Ito's colours, which readers of any colour vision tell apart. A marker beside each helps in print; as there
# are more markers than colours, no pair of both repeats soon.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NEUTRAL_COLOR = "#595959"
_DOTS = ((1, 1.5), (4, 1.5, 1, 1.5), (4, 1.5, 1, 1.5, 1, 1.5))  # patterns of levels: ink and gap in line widths
GRID_COLOR = "#e3e7ee"

# An axis of percentages spans at least so much: stretched over the whole width, noise looks like a difference.
_LEAST_SPAN = 5.0


class Estimate(NamedTuple):
    """A measured value with its 95 % interval, all in %."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, interval: tuple[float, float]) -> "Estimate":
        """Converts fractions."""
        return cls(100 * value, 100 * interval[0], 100 * interval[1])


class Errors(NamedTuple):
    """One line of a dot plot."""

    label: str
    seeds: list[float]  # errors in %
    mean: Estimate
    paper: float | None = None  # error in %; None if the paper has none


def error_dots(lines: Sequence[Errors], quantity: str) -> Any:
    """Plots a line per entry: a dot per seed, a bar at their mean, its interval, a diamond for the paper's error."""
    figure, axes = empty_axes(height=0.9 + 0.4 * len(lines))
    for row, line in enumerate(lines):
        _interval_bar(axes, line.mean, row, COLORS[0])
        axes.plot(line.seeds, [row] * len(line.seeds), "o", color=COLORS[0], alpha=0.6, markersize=6)
        axes.plot([line.mean.value] * 2, [row - 0.28, row + 0.28], color=COLORS[0], linewidth=2)
        if line.paper is not None:
            axes.plot([line.paper], [row], "D", markerfacecolor="none", markeredgecolor=COLORS[1], markersize=7)

    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    values = [x for line in lines for x in (*line.seeds, *line.mean, *([] if line.paper is None else [line.paper]))]
    axes.set_xlim(percent_limits(values))
    paper = "; diamond: the paper" if any(line.paper is not None for line in lines) else ""
    axes.set_xlabel(f"{quantity} in % (dots: seeds; bar: mean; line: 95 % interval{paper})")
    axes.grid(axis="x", color=GRID_COLOR)
    return figure


def _interval_bar(axes: Any, estimate: Estimate, row: float, color: str) -> None:
    """Draws an interval as a horizontal line with caps."""
    axes.plot([estimate.low, estimate.high], [row] * 2, "|-", color=color, linewidth=1.2, markersize=7)


def percent_limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of an axis that shows these percentages: a little more than them, and at least 5 points."""
    low, high = min(values), max(values)
    span = max(1.1 * (high - low), _LEAST_SPAN)
    start = max((low + high - span) / 2, -0.05 * span)  # half a marker of space below 0 and above 100
    end = min(start + span, 100 + 0.05 * span)
    return min(start, end - span), end


def error_curves(
    curves: Mapping[str, Mapping[int, Estimate]], x_label: str, quantity: str, x_names: Sequence[str] = ()
) -> Any:
    """Plots a curve per entry through its errors at each x, with a bar for each 95 % interval.

    Args:
        curves: label -> x -> error.
        x_label: what x is.
        quantity: what the errors are.
        x_names: texts instead of the numbers x, in ascending order.
    """
    figure, axes = empty_axes(height=4.2)
    ticks = sorted({x for points in curves.values() for x in points})
    shift = 0.006 * (ticks[-1] - ticks[0])  # so that bars do not hide each other
    for i, (label, points) in enumerate(curves.items()):
        dashes = "--" if i >= len(COLORS) else "-"
        xs, estimates = zip(*sorted(points.items()), strict=True)
        shifted = [x + shift * (i - (len(curves) - 1) / 2) for x in xs]
        style = {"linestyle": dashes, "marker": "o", "markersize": 4, "color": COLORS[i % len(COLORS)]}
        axes.errorbar(
            shifted, [one.value for one in estimates], bar_lengths(estimates), elinewidth=1, label=label, **style
        )

    axes.set_xlabel(x_label)
    axes.set_ylabel(f"{quantity} in % (bars: 95 % intervals)")
    axes.set_xticks(ticks, x_names or None)
    axes.set_ylim(percent_limits([x for points in curves.values() for one in points.values() for x in one]))
    axes.grid(color=GRID_COLOR)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def bar_lengths(estimates: Sequence[Estimate]) -> np.ndarray:
    """Returns the lengths of the bars below and above each value, (2, n), as matplotlib takes them."""
    lengths = [(max(0.0, one.value - one.low), max(0.0, one.high - one.value)) for one in estimates]
    return np.array(lengths).reshape(-1, 2).T


class LayerCurve(NamedTuple):
    """One curve of a plot by layer."""

    label: str
    points: dict[str, Estimate]  # by layer
    network: int  # a trained network and the same one untrained share the number, and so colour and marker
    trained: bool  # untrained ones are dashed, with hollow markers


def layer_curves(
    curves: Sequence[LayerCurve], layers: Sequence[str], levels: Mapping[str, float], quantity: str
) -> Any:
    """Plots a curve per entry through its values at each layer, with a bar for each 95 % interval.

    Untrained networks are in the legend only if the trained one is not.

    Args:
        layers: from left to right.
        levels: label -> value in %, each a dotted line across the plot.
    """
    figure, axes = empty_axes(height=4.2)
    middle = max(curve.network for curve in curves) / 2
    drawn = []
    for curve in curves:
        shown = [(x, curve.points[layer]) for x, layer in enumerate(layers) if layer in curve.points]
        xs = [x + 0.04 * (curve.network - middle) for x, _ in shown]  # so that bars do not hide each other
        values, bars = [one.value for _, one in shown], bar_lengths([one for _, one in shown])
        drawn.append(axes.errorbar(xs, values, bars, markersize=5, capsize=3, label=curve.label, **_style(curve)))

    trained = {curve.network for curve in curves if curve.trained}
    twins = [not curve.trained and curve.network in trained for curve in curves]
    legend = [handle for handle, twin in zip(drawn, twins, strict=True) if not twin]
    if any(twins):
        style = {"color": NEUTRAL_COLOR, "markerfacecolor": "white", "label": "dashed: the same, untrained"}
        legend += axes.plot([], [], "--o", **style)
    for i, (label, value) in enumerate(levels.items()):
        dots = (0, _DOTS[i % len(_DOTS)])
        legend.append(axes.axhline(value, linestyle=dots, color=NEUTRAL_COLOR, label=label))

    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.4, len(layers) - 0.6)
    ends = [x for curve in curves for one in curve.points.values() for x in one]
    axes.set_ylim(percent_limits([*ends, *levels.values()]))
    axes.set_ylabel(f"{quantity} in % (bars: 95 % intervals)")
    axes.grid(axis="y", color=GRID_COLOR)
    axes.legend(handles=legend, frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    return figure


def _style(curve: LayerCurve) -> dict[str, Any]:
    color, marker = COLORS[curve.network % len(COLORS)], _MARKERS[curve.network % len(_MARKERS)]
    style = {"color": color, "marker": marker}
    return style if curve.trained else style | {"linestyle": "--", "markerfacecolor": "white"}


def precision_curves(curves: Mapping[str, np.ndarray], titles: Sequence[str]) -> Any:
    """Plots precision against recall, a panel per class with a curve per entry, which ends where precision is 0.

    Args:
        curves: label -> (classes, points), precision at recalls from 0 to 1 in equal steps.
        titles: of the classes.
    """
    from matplotlib.ticker import PercentFormatter

    figure, panels = _panels(len(titles), sharex=True)
    for panel, title, of_class in zip(panels, titles, zip(*curves.values(), strict=True), strict=True):
        for i, precision in enumerate(of_class):
            recall, reached = np.linspace(0, 1, len(precision)), np.where(precision > 0, precision, np.nan)
            panel.plot(recall, reached, "--" if i >= len(COLORS) else "-", color=COLORS[i % len(COLORS)])
        panel.set_title(title, fontsize=9)

    figure.axes[0].set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=None))
    figure.supxlabel("recall in %", fontsize=10)
    figure.supylabel("precision in %", fontsize=10)
    figure.tight_layout()
    handles = figure.axes[0].get_lines()
    columns = 2 if max(map(len, curves), default=0) > 30 else 3
    figure.legend(
        handles, list(curves), frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns
    )
    return figure


def setting_dots(settings: Mapping[str, Sequence[Any]], errors: Sequence[float], quantity: str) -> Any:
    """Plots errors against every setting, a panel each, with a dot for every run.

    Args:
        settings: name -> the values of all runs.
        errors: of the runs in %, in the same order.
        quantity: what the errors are.
    """
    figure, panels = _panels(len(settings))
    for panel, (name, values) in zip(panels, settings.items(), strict=True):
        panel.plot(_positions(panel.xaxis, values), errors, "o", color=COLORS[0], alpha=0.6, markersize=5)
        panel.set_title(name, fontsize=9)
        panel.tick_params(axis="x", labelsize=8)

    figure.axes[0].set_ylim(percent_limits(errors))
    figure.supylabel(f"{quantity} in %", fontsize=10)
    figure.tight_layout()
    return figure


def _positions(axis: Any, values: Sequence[Any]) -> list[float]:
    """Prepares an axis for the values of a setting, and returns their positions on it.

    More than four numbers lie where they are, on a logarithmic axis if they are positive and the largest is ten times
    the smallest or more. Any other values are named below the axis, numbers in ascending order.
    """
    from matplotlib.ticker import NullFormatter

    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    names = list(dict.fromkeys(value_text(value) for value in (*sorted(numbers), *values)))
    if len(numbers) < len(values) or len(names) <= 4:
        axis.set_ticks(range(len(names)), names)
        axis.axes.set_xmargin(0.2)
        return [names.index(value_text(value)) for value in values]

    if 0 < 10 * min(numbers) <= max(numbers):
        axis.axes.set_xscale("log")
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    return numbers


def value_text(value: Any) -> str:
    """Formats the value of a setting as on the command line, but numbers with three digits and text without quotes."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else hydra_value(value)


def _panels(count: int, sharex: bool = False) -> tuple[Any, list[Any]]:
    """Returns a figure with so many panels, up to four beside each other, and their axes, which share y."""
    columns = min(4, max(1, count))
    rows = -(-count // columns)
    figure, first = empty_axes(height=0.7 + 2.1 * rows)
    first.remove()
    panels = list(figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).flat)
    for panel in panels:
        panel.grid(color=GRID_COLOR)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def confusion_plot(matrix: np.ndarray, classes: Sequence[str]) -> Any:
    """Plots a confusion matrix in % of each class's images; rows: true class, columns: class with the highest score."""
    figure, axes = empty_axes(height=7)
    shares = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the class's images")
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("class with the highest score")
    axes.set_ylabel("true class")
    return figure


def empty_axes(height: float) -> tuple[Any, Any]:
    """Returns an empty figure of this height in inches, and its axes."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure  # takes a second

    rcParams["svg.hashsalt"] = "sppnet"  # the same page, byte for byte, from the same records
    rcParams["text.parse_math"] = False  # a $ in the name of a class is no formula
    figure = Figure(figsize=(8.5, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
