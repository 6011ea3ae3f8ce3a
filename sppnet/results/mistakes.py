"""The mistakes of one network on one set of images: by class, by pairs of classes, by image, and by size of image."""

from typing import NamedTuple

import numpy as np

from sppnet.results.comparisons import confusion_matrix, percent, wrong
from sppnet.results.scores import Scores
from sppnet.results.statistics import wilson_interval

_IMAGES_OF_BIN = 30  # at least about so many: with fewer, an interval spans a third of the axis


class Rate(NamedTuple):
    """How many of some images are wrong, with the 95 % interval of the share over images (Wilson)."""

    wrong: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, wrong: int, n: int) -> "Rate":
        """Counts `wrong` of `n` images. Raises ValueError unless 0 <= wrong <= n and n >= 1."""
        return cls(int(wrong), int(n), *wilson_interval(int(wrong), int(n)))

    @property
    def share(self) -> float:
        """A fraction, 0..1."""
        return self.wrong / self.n

    @property
    def text(self) -> str:
        """The share with its interval, in % without the sign."""
        return f"{percent(self.share)} ({percent(self.low)} to {percent(self.high)})"


def class_rates(scores: Scores) -> dict[int, Rate]:
    """Returns label -> how many images of the class are wrong, worst first, for classes that have images."""
    mistakes = wrong(scores)
    classes = scores.scores.shape[1]
    counts = np.bincount(scores.labels, minlength=classes)
    wrongs = np.bincount(scores.labels, mistakes, minlength=classes).astype(int)
    rates = {int(label): Rate.of(wrongs[label], counts[label]) for label in np.flatnonzero(counts)}
    return dict(sorted(rates.items(), key=lambda item: (-item[1].share, -item[1].n)))


class Confusion(NamedTuple):
    """Images of one class that have the highest score for another."""

    label: int
    taken_for: int
    rate: Rate  # of the images of the class
    images: np.ndarray  # int64, their indices, the highest score first


def confusions(scores: Scores, most: int) -> list[Confusion]:
    """Returns the pairs of classes that are confused most: by most images, of equally many by the larger share."""
    matrix = confusion_matrix(scores)
    counts = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    predicted, highest = scores.scores.argmax(axis=1), scores.scores.max(axis=1)

    pairs = [
        (-int(matrix[label, other]), int(counts[label]), int(label), int(other)) for label, other in np.argwhere(matrix)
    ]
    found = []
    for negative, n, label, other in sorted(pairs)[:most]:
        images = np.flatnonzero((scores.labels == label) & (predicted == other))
        order = np.argsort(-highest[images], kind="stable")
        found.append(Confusion(label, other, Rate.of(-negative, n), images[order]))
    return found


def worst_mistakes(scores: Scores, most: int) -> np.ndarray:
    """Returns the indices of images whose highest score exceeds that of their true class most, int64, worst first."""
    true = scores.scores[np.arange(len(scores.labels)), scores.labels]
    excess = scores.scores.max(axis=1) - true
    order = np.argsort(-excess, kind="stable")[:most]
    return order[excess[order] > 0]


class Bin(NamedTuple):
    """Images whose value of some property is in a range."""

    low: float  # the lowest and the highest value of these images
    high: float
    members: np.ndarray  # bool (n,)


def quantile_bins(values: np.ndarray, most: int = 6) -> list[Bin]:
    """Splits images by a property into at most `most` ranges of about equally many; equal values stay together.

    Args:
        values: (n,), of every image.
        most: bins; fewer are made of few images.
    """
    count = max(1, min(most, len(values) // _IMAGES_OF_BIN))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1), method="inverted_cdf"))
    numbers = np.searchsorted(edges[1:-1], values, side="right")
    return [
        Bin(float(values[members].min()), float(values[members].max()), members)
        for members in (numbers == number for number in range(max(1, len(edges) - 1)))
        if members.any()
    ]
