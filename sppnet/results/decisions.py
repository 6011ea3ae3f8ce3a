"""Accuracy of saved decisions, or average precision where images have several labels."""

import numpy as np

from sppnet.metrics import average_precision
from sppnet.results.comparisons import wrong
from sppnet.results.scores import Scores

# What a table gives of decisions, the first being what gains are counted in. The paper does not say which accuracy and
# which average precision it gives.
ACCURACIES = ("overall", "per class")  # share of all images; mean over the classes of the share of their images
PRECISIONS = ("11 points", "all points")  # mean average precision, by recall at 11 points or at all

_RESAMPLES = 200  # the standard deviation of a bootstrap is then known within 5 %


def measures(scores: Scores) -> dict[str, float]:
    """Returns the accuracies or the mean average precisions, as fractions in 0..1, by their names above."""
    if scores.several_labels:
        values = [_mean(_average_precisions(scores, points)) for points in (11, None)]
    else:
        values = [float(1 - wrong(scores).mean()), _mean(class_values(scores))]
    return dict(zip(measure_names(scores.several_labels), values, strict=True))


def measure_names(several_labels: bool) -> tuple[str, str]:
    """Returns the names of the two measures of images with one label, or with several."""
    return PRECISIONS if several_labels else ACCURACIES


def quantity_text(several_labels: bool) -> str:
    """Names what the measures are of."""
    return "mAP" if several_labels else "accuracy"


def class_values(scores: Scores) -> np.ndarray:
    """Returns float (classes,): accuracy or 11-point average precision per class; nan without an image of the class.

    A tie counts as wrong, as in `metrics.top_k_wrong`.
    """
    if scores.several_labels:
        return _average_precisions(scores, 11)
    classes = scores.scores.shape[1]
    hits = np.bincount(scores.labels, weights=~wrong(scores), minlength=classes)
    images = np.bincount(scores.labels, minlength=classes)
    return np.divide(hits, images, out=np.full(classes, np.nan), where=images > 0)


def resampled_precisions(scores: Scores) -> np.ndarray:
    """Returns float (resamples,): 11-point mean average precision on random images, drawn with replacement.

    For the same number of images the same ones are drawn, so two features on the same images are compared in pairs.
    """
    n = len(scores.labels)
    draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    resampled = (Scores(scores.scores[draw], scores.labels[draw], scores.names, {}) for draw in draws)
    return np.array([_mean(_average_precisions(one, 11)) for one in resampled])


def _average_precisions(scores: Scores, points: int | None) -> np.ndarray:
    """Returns float (classes,): average precision per class over the images whose label is not 0."""
    values = []
    for decisions, labels in zip(scores.scores.T, scores.labels.T, strict=True):
        counted = labels != 0
        positive = labels[counted] == 1
        values.append(average_precision(decisions[counted], positive, int(positive.sum()), points=points))
    return np.array(values)


def _mean(values: np.ndarray) -> float:
    """Returns the mean of what is not nan; nan if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
