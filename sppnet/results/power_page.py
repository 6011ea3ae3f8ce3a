"""Page of what comparisons of runs can show: the spread between seeds, and the gains that so many seeds show."""

import re
from collections.abc import Sequence

import numpy as np

from sppnet.results.comparisons import NotTested, check_same_images, gain_text, percent, wrong
from sppnet.results.page import Page
from sppnet.results.runs import Run, grouped
from sppnet.results.statistics import gain_interval, spread_of
from sppnet.results.sweeps import pyramid_order

_SEEDS = (5, 10, 20, 40)  # on each side, for which the smallest gain is shown
_GAIN = 0.01  # a point of top-1 error, as the paper's Table 2 has it for ZF-5


def power_page(runs: Sequence[Run]) -> Page:
    """Makes a page of how many seeds show which gain, for each network against the first one.

    The first one is the network without a pyramid, if there is one. They may differ in anything.

    Raises NotTested if no two networks were tested by one protocol with two seeds or more.
    """
    page = Page("What so many seeds can show")
    page.text(
        "Top-1 errors in %: mean ± standard deviation over seeds. Gain: how much lower the error is than that of the "
        "first network by the same views, with its 95 % interval over images and training runs. Then the smallest true "
        "gain, in points, that the interval of so many seeds on each side tells from 0 with 80 % power, and the seeds "
        "that one point needs. They are estimates from the spread of these runs, which few seeds know badly; the "
        "choice of the images stays, however many seeds there are."
    )
    groups = sorted(grouped(runs).values(), key=lambda seeds: pyramid_order(seeds[0]))
    rows = []
    for views in sorted({views for run in runs for views in run.scores}):
        tested = [(_name(seeds[0]), mistakes) for seeds in groups if len(mistakes := _mistakes(seeds, views)) > 1]
        rows += _rows(views, tested) if len(tested) > 1 else []
    if not rows:
        raise NotTested("no two networks were tested by the same views with two seeds or more")

    smallest = [f"smallest gain with {seeds} seeds" for seeds in _SEEDS]
    page.table(["network", "views", "images", "seeds", "top-1 error", "gain", *smallest, "seeds for 1 point"], rows)
    return page


def _mistakes(seeds: Sequence[Run], views: str) -> np.ndarray:
    """Returns which images each run got wrong that was tested by these views, bool (runs, n)."""
    scores = [run.scores[views] for run in seeds if views in run.scores]
    for other in scores[1:]:
        check_same_images(scores[0], other)
    return np.stack([wrong(one) for one in scores]) if scores else np.zeros((0, 0), bool)


def _name(run: Run) -> str:
    """Returns the name of a run without its seed."""
    return re.sub(r"-seed\d+(?=-|$)", "", run.path.name)


def _rows(views: str, tested: Sequence[tuple[str, np.ndarray]]) -> list[list[str]]:
    """Returns a row for each network by its name and which images its runs got wrong; the first is the reference."""
    (_, reference), *others = tested
    rows = [[*_error_cells(*tested[0], views), *[""] * (len(_SEEDS) + 2)]]
    return rows + [[*_error_cells(name, wrong, views), *_gain_cells(reference, wrong)] for name, wrong in others]


def _error_cells(name: str, mistakes: np.ndarray, views: str) -> list[str]:
    errors = mistakes.mean(axis=1)
    error = f"{percent(errors.mean())} ± {percent(errors.std(ddof=1))}"
    return [name, views, f"{mistakes.shape[1]:,}", str(len(mistakes)), error]


def _gain_cells(reference: np.ndarray, mistakes: np.ndarray) -> list[str]:
    spread = spread_of(reference, mistakes)
    gain = gain_text(reference.mean() - mistakes.mean(), *gain_interval(reference, mistakes))
    smallest = [percent(spread.shown_gain(seeds)) for seeds in _SEEDS]
    needed = spread.runs_needed(_GAIN)
    return [gain, *smallest, "more than 1,000" if needed is None else str(needed)]
