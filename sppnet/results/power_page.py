"""Page of what comparisons of runs can show: the spread between seeds, and the gains that so many seeds show."""

import re
from collections.abc import Sequence

import numpy as np

from sppnet.results.comparisons import NotTested, check_same_images, gain_text, percent, wrong
from sppnet.results.page import Page
from sppnet.results.runs import Run, grouped
from sppnet.results.scores import Scores
from sppnet.results.statistics import gain_interval, spread_of
from sppnet.results.sweeps import pyramid_order

_SEEDS = (5, 10, 20, 40)  # on each side, for which the smallest gain is shown besides those of the runs
_GAIN = 0.01  # a point of top-1 error, as the paper's Table 2 has it for ZF-5


def power_page(runs: Sequence[Run]) -> Page:
    """Makes a page of how many seeds show which gain, for each network against the first one.

    The first one is the network without a pyramid, if there is one. They may differ in anything.

    Raises NotTested if no two networks were tested by one protocol with two seeds or more, and ValueError if they were
    tested on different images.
    """
    page = Page("What so many seeds can show")
    page.text(
        "Top-1 errors in %: mean ± standard deviation over seeds. Gain: how much lower the error is than that of the "
        "first network by the same views, with its 95 % interval over images and training runs. Then the smallest true "
        "gain, in points, that the interval tells from 0 with 80 % power: by as many seeds on each side as there are, "
        "and by 5 to 40; and the seeds that one point needs. They are estimates from the spread of these runs, which "
        "few seeds know badly; the choice of the images stays, however many seeds there are."
    )
    groups = sorted(grouped(runs).values(), key=lambda seeds: pyramid_order(seeds[0]))
    rows = []
    for views in sorted({views for run in runs for views in run.scores}):
        tested = [(_name(seeds[0]), scores) for seeds in groups if len(scores := _scores(seeds, views)) > 1]
        rows += _rows(views, tested) if len(tested) > 1 else []
    if not rows:
        raise NotTested("no two networks were tested by the same views with two seeds or more")

    smallest = ["smallest gain with these seeds", *(f"smallest gain with {seeds} seeds" for seeds in _SEEDS)]
    page.table(["network", "views", "images", "seeds", "top-1 error", "gain", *smallest, "seeds for 1 point"], rows)
    return page


def _scores(seeds: Sequence[Run], views: str) -> list[Scores]:
    return [run.scores[views] for run in seeds if views in run.scores]


def _name(run: Run) -> str:
    """Returns the name of a run without its seed."""
    return re.sub(r"-seed\d+(?=-|$)", "", run.path.name)


def _rows(views: str, tested: Sequence[tuple[str, list[Scores]]]) -> list[list[str]]:
    """Returns a row for each network by its name and the scores of its runs; the first is the reference."""
    for _, scores in tested:
        for other in scores:
            check_same_images(tested[0][1][0], other)
    (first, reference), *others = [(name, np.stack(list(map(wrong, scores)))) for name, scores in tested]
    rows = [[*_error_cells(first, reference, views), *[""] * (len(_SEEDS) + 3)]]
    return rows + [[*_error_cells(name, other, views), *_gain_cells(reference, other)] for name, other in others]


def _error_cells(name: str, mistakes: np.ndarray, views: str) -> list[str]:
    errors = mistakes.mean(axis=1)
    error = f"{percent(errors.mean())} ± {percent(errors.std(ddof=1))}"
    return [name, views, f"{mistakes.shape[1]:,}", str(len(mistakes)), error]


def _gain_cells(reference: np.ndarray, mistakes: np.ndarray) -> list[str]:
    spread = spread_of(reference, mistakes)
    gain = gain_text(reference.mean() - mistakes.mean(), *gain_interval(reference, mistakes))
    smallest = [percent(spread.shown_gain(seeds)) for seeds in (min(len(reference), len(mistakes)), *_SEEDS)]
    needed = spread.runs_needed(_GAIN)
    return [gain, *smallest, "more than 1,000" if needed is None else str(needed)]
