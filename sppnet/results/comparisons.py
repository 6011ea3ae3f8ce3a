"""Errors of tested networks side by side: with intervals, combined, compared in pairs, by class."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sppnet.metrics import top_k_wrong
from sppnet.results.records import Scores
from sppnet.results.statistics import PairedTest, paired_test, wilson_interval

Rows = tuple[list[str], list[list[str]]]  # headers and rows of a table
PERCENT = 100.0


def wrong(scores: Scores, k: int = 1) -> np.ndarray:
    """bool (n,): which images have their true class not among the k highest scores."""
    return top_k_wrong(torch.from_numpy(scores.scores), torch.from_numpy(scores.labels), k).numpy()


def combine(several: Sequence[Scores]) -> Scores:
    """The paper's combination of networks: the mean of their softmax scores.

    Raises ValueError unless all are of the same images in the same order.
    """
    first = several[0]
    for other in several[1:]:
        check_same_images(first, other)
    mean = np.stack([one.scores for one in several]).mean(axis=0)
    return Scores(mean, first.labels, first.names, {"combined": [one.about.get("run") for one in several]})


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
    """int64 (classes, classes): how many images of the row's class got the column's class as their highest score."""
    classes = scores.scores.shape[1]
    pairs = scores.labels * classes + scores.scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def percent(fraction: float) -> str:
    return f"{PERCENT * fraction:.2f}"


def error_text(mistakes: np.ndarray) -> str:
    """An error in % with its 95 % interval over images, of bool (n,)."""
    low, high = wilson_interval(int(mistakes.sum()), len(mistakes))
    return f"{percent(mistakes.mean())} ({percent(low)} to {percent(high)})"


def p_text(p: float) -> str:
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def errors_table(tested: Mapping[str, Mapping[str, Scores]]) -> Rows:
    """Protocol -> run -> scores; with more than one run of a protocol, their combination too."""
    headers = ["views", "network", "images", "top-1 error in % (95 % interval over images)", "top-5 error in %"]
    rows = []
    for views, runs in tested.items():
        entries = dict(runs)
        if len(runs) > 1:
            entries[f"combination of {len(runs)}"] = combine(list(runs.values()))
        for run, scores in entries.items():
            rows.append(
                [views, run, f"{len(scores.labels):,}", error_text(wrong(scores)), error_text(wrong(scores, 5))]
            )
    return headers, rows


def protocol_lines(tested: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """What every protocol is in pixels; one line per run where runs differ, as their crop sides do."""
    lines = []
    for views, runs in tested.items():
        texts = {run: str(scores.about.get("protocol_text", "")) for run, scores in runs.items()}
        if len(set(texts.values())) == 1:
            lines.append(f"{views}: {next(iter(texts.values()))}")
        else:
            lines += [f"{views}, {run}: {text}" for run, text in texts.items()]
    return lines


def comparisons_table(tested: Mapping[str, Mapping[str, Scores]]) -> Rows:
    """Every run against the first, on the same images, by top-1."""
    headers = [
        "views",
        "network",
        "against",
        "only it wrong",
        "only other wrong",
        "gain in % (95 % interval over images)",
        "McNemar p",
    ]
    rows = []
    for views, runs in tested.items():
        (name, first), *others = runs.items()
        for other, scores in others:
            check_same_images(first, scores)
            test = paired_test(wrong(first), wrong(scores))
            rows.append(
                [views, other, name, f"{test.only_second:,}", f"{test.only_first:,}", gain_text(test), p_text(test.p)]
            )
    return headers, rows


def gain_text(test: PairedTest) -> str:
    """How much lower the second error is, in %."""
    return signed(test.difference, test.low, test.high)


def signed(value: float, low: float, high: float) -> str:
    return f"{PERCENT * value:+.2f} ({PERCENT * low:+.2f} to {PERCENT * high:+.2f})"


def classes_table(scores: Scores, classes: Sequence[str]) -> Rows:
    """Error per class, the worst first, with the class it is taken for most often."""
    matrix = confusion_matrix(scores)
    mistakes = wrong(scores)
    headers = ["class", "images", "top-1 error in %", "most often taken for"]
    rows = []
    for label in np.unique(scores.labels):
        own = mistakes[scores.labels == label]
        others = matrix[label].copy()
        others[label] = 0
        taken = f"{classes[others.argmax()]} ({others.max()})" if others.max() else ""
        rows.append((own.mean(), [classes[label], f"{len(own):,}", percent(own.mean()), taken]))
    return headers, [row for _, row in sorted(rows, key=lambda row: -row[0])]
