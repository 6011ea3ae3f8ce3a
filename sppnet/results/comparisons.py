"""Networks compared on the same images: errors with intervals, combinations, paired tests."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from sppnet.metrics import top_k_wrong
from sppnet.results.page import Page
from sppnet.results.plots import Estimate
from sppnet.results.records import shows_top5
from sppnet.results.runs import Run
from sppnet.results.scores import Scores, check_single_label
from sppnet.results.statistics import error_interval, paired_test, wilson_interval
from sppnet.runtime.checkout import shown_command

Rows = tuple[list[str], list[list[str]]]  # headers and rows of a table


class NotTested(ValueError):  # noqa: N818 (says what the runs are, as its message does)
    """Runs lack the tests that a page is made of. The message names the command."""


# What the intervals of errors in plots cover, for their captions.
INTERVALS_COVER = "over images with one seed, over images and training runs with several"


def wrong(scores: Scores, k: int = 1) -> np.ndarray:
    """Returns bool (n,): for each image whether its true class is missing among the k highest scores.

    Raises ValueError unless images have one label each.
    """
    check_single_label(scores, str(scores.about.get("run")))
    return top_k_wrong(torch.from_numpy(scores.scores), torch.from_numpy(scores.labels), k).numpy()


def top_counts(tested: Iterable[Scores]) -> list[int]:
    """Returns the k of the top-k errors that tables of some scores show: 1, and 5 if any has classes enough for it."""
    return [1, 5] if any(shows_top5(scores.scores.shape[1]) for scores in tested) else [1]


def error_estimate(mistakes: np.ndarray) -> Estimate:
    """Returns the mean error of runs on the same images with its interval, for plots. `mistakes`: bool (runs, n)."""
    return Estimate.of(float(mistakes.mean()), error_interval(mistakes))


def combine(tested: Sequence[Scores]) -> Scores:
    """Combines networks as the paper does, by the mean of their softmax scores, or SVMs by that of their decisions.

    Raises ValueError unless all are of the same images in the same order.
    """
    first = tested[0]
    for other in tested[1:]:
        check_same_images(first, other)
    mean = np.stack([scores.scores for scores in tested]).mean(axis=0)
    return Scores(mean, first.labels, first.names, {"combined": [scores.about.get("run") for scores in tested]})


def check_same_images(first: Scores, other: Scores) -> None:
    """Raises ValueError unless both are of the same images in the same order, with the same labels and classes.

    The same images have the same contents, not only the same names.
    """
    same = first.scores.shape == other.scores.shape and np.array_equal(first.names, other.names)
    same = same and first.about.get("images") == other.about.get("images")
    if not same or not np.array_equal(first.labels, other.labels):
        raise ValueError(
            f"{first.about.get('run')} and {other.about.get('run')} were tested on different images or classes "
            f"({len(first.labels):,} and {len(other.labels):,} images)"
        )


def confusion_matrix(scores: Scores) -> np.ndarray:
    """Returns int64 (classes, classes): how many images of the row's class score highest for the column's class."""
    classes = scores.scores.shape[1]
    pairs = scores.labels * classes + scores.scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def percent(fraction: float) -> str:
    """Formats a fraction in % without the sign."""
    return f"{100 * fraction:.2f}"


def error_text(mistakes: np.ndarray) -> str:
    """Formats the mean of bool (n,) as an error in % with its 95 % interval over images."""
    low, high = wilson_interval(int(mistakes.sum()), len(mistakes))
    return f"{percent(mistakes.mean())} ({percent(low)} to {percent(high)})"


def gain_text(value: float, low: float, high: float) -> str:
    """Formats how much lower an error is, in % and with the sign, with its interval. All three are fractions."""
    return f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def p_text(p: float) -> str:
    """Formats a p value."""
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def errors_table(tested: Mapping[str, Mapping[str, Scores]]) -> Rows:
    """Tabulates the errors of every run, and of their combination if there are several; top-5 as `shows_top5` says.

    Args:
        tested: protocol -> run -> scores.
    """
    counts = top_counts(scores for runs in tested.values() for scores in runs.values())
    errors_of = {1: "top-1 error in % (95 % interval over images)", 5: "top-5 error in %"}
    headers = ["views", "network", "images", *(errors_of[k] for k in counts)]
    rows = []
    for views, runs in tested.items():
        entries = dict(runs)
        if len(runs) > 1:
            entries[f"combination of {len(runs)}"] = combine(list(runs.values()))
        for run, scores in entries.items():
            errors = [error_text(wrong(scores, k)) for k in counts]
            rows.append([views, run, f"{len(scores.labels):,}", *errors])
    return headers, rows


def protocol_lines(tested: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """Describes every protocol in pixels, in one line per run if the runs differ, as their crop sides do.

    Args:
        tested: protocol -> run -> scores.
    """
    lines = []
    for views, runs in tested.items():
        texts = {run: str(scores.about.get("protocol_text", "")) for run, scores in runs.items()}
        if len(set(texts.values())) == 1:
            lines.append(f"{views}: {next(iter(texts.values()))}")
        else:
            lines += [f"{views}, {run}: {text}" for run, text in texts.items()]
    return lines


def comparisons_table(tested: Mapping[str, Mapping[str, Scores]]) -> Rows:
    """Tabulates every run against the first, by top-1 on the same images.

    Args:
        tested: protocol -> run -> scores.
    """
    headers = ["views", "network", "against", "only it wrong", "only other wrong"]
    headers += ["gain in % (95 % interval over images)", "McNemar p"]
    rows = []
    for views, runs in tested.items():
        (name, first), *others = runs.items()
        for other, scores in others:
            check_same_images(first, scores)
            test = paired_test(wrong(first), wrong(scores))
            counts = [f"{test.only_second:,}", f"{test.only_first:,}"]
            gain = gain_text(test.difference, test.low, test.high)
            rows.append([views, other, name, *counts, gain, p_text(test.p)])
    return headers, rows


def comparison_page(runs: Sequence[Run]) -> Page:
    """Makes a page of errors, combination and paired tests against the first run, for every protocol all runs have.

    Raises NotTested if there is no such protocol.
    """
    page = Page("Networks compared")
    for i, run in enumerate(runs):
        page.text(f"{'First: ' if i == 0 else ''}`{run.path}`: {run.setting_text()}")

    shared = [views for views in runs[0].scores if all(views in run.scores for run in runs)]
    if not shared:
        raise NotTested(
            f"{', '.join(str(run.path) for run in runs)}: no views that all were tested on; do it with "
            f"{shown_command('evaluate')} run=[RUN1,RUN2] views=[center]"
        )
    tested = {views: {run.path.name: run.scores[views] for run in runs} for views in shared}

    page.text("Views: " + "; ".join(protocol_lines(tested)) + ".")
    page.heading("Errors")
    page.text("Intervals are over images only (Wilson).")
    page.table(*errors_table(tested))
    if len(runs) > 1:
        page.heading("On the same images")
        page.text(
            "Gain: how much lower the top-1 error is than that of the first. p: McNemar's exact test, two-sided. Both "
            "are over images only: they compare these trained networks, and other training runs may differ more."
        )
        page.table(*comparisons_table(tested))
    return page
