"""The section of a page about errors against the size and the shape of images."""

from collections.abc import Mapping, Sequence

import numpy as np

from sppnet.results.comparisons import error_estimate, error_text, gain_text, wrong
from sppnet.results.mistakes import Bin, quantile_bins
from sppnet.results.page import Page
from sppnet.results.plots import Estimate, error_curves
from sppnet.results.scores import Scores
from sppnet.results.scores_sections import OVER_IMAGES
from sppnet.results.statistics import gain_interval


def add_sizes(page: Page, tested: Mapping[str, Scores], sizes: np.ndarray) -> None:
    """Adds the error against the shorter side and against the aspect ratio of images, a curve per protocol.

    Args:
        page: to add to.
        tested: protocol -> scores of one network.
        sizes: int (n, 2), height and width of every image in pixels.
    """
    page.heading("Error against size and shape of images")
    page.text(
        "Sizes are those of the files; tests resize images. Bins hold about equally many images. Classes may differ in "
        "size and shape, so compare protocols within a bin rather than bins."
    )
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    _add_bins(page, tested, "shorter side in pixels", shorter, 0)
    _add_bins(page, tested, "longer side / shorter side", longer / shorter, 2)


def _add_bins(page: Page, tested: Mapping[str, Scores], quantity: str, values: np.ndarray, digits: int) -> None:
    """Adds a plot and a table of the errors by bins of one property of the images, given with so many digits."""
    bins = quantile_bins(values)
    ranges = [_range_text(one, digits) for one in bins]
    if len(bins) == 1:
        page.text(f"{quantity}: {ranges[0]}, too few different ones to compare.")
        return

    mistakes = {name: wrong(scores) for name, scores in tested.items()}
    names = [f"{text}\n{one.members.sum():,} images" for text, one in zip(ranges, bins, strict=True)]
    page.figure(
        error_curves(
            {name: _errors_by_bin(one, bins) for name, one in mistakes.items()}, quantity, "top-1 error", names
        ),
        f"top-1 error against {quantity}",
        f"{len(values):,} images, {OVER_IMAGES} (Wilson).",
    )
    rows = [[text, *_cells(mistakes, one)] for text, one in zip(ranges, bins, strict=True)]
    page.table([quantity, *_headers(list(mistakes))], rows, folded=f"Table by {quantity}")


def _errors_by_bin(mistakes: np.ndarray, bins: Sequence[Bin]) -> dict[int, Estimate]:
    return {i: error_estimate(mistakes[one.members][None]) for i, one in enumerate(bins)}


def _headers(names: Sequence[str]) -> list[str]:
    return ["images", f"top-1 error in % by {names[0]}", *(f"gain by {name}" for name in names[1:])]


def _cells(mistakes: Mapping[str, np.ndarray], one: Bin) -> list[str]:
    """Returns the images of a bin, the error by the first protocol, and the gain by each other one on these images."""
    first, *others = [of_protocol[one.members] for of_protocol in mistakes.values()]
    gains = [
        gain_text(float(first.mean() - other.mean()), *gain_interval(first[None], other[None])) for other in others
    ]
    return [f"{len(first):,}", error_text(first), *gains]


def _range_text(one: Bin, digits: int) -> str:
    low, high = f"{one.low:.{digits}f}", f"{one.high:.{digits}f}"
    return low if low == high else f"{low} to {high}"
