"""Page of what comparisons of runs can show: the spread between seeds, and the gains that so many seeds show."""

import re
from collections.abc import Sequence
from typing import NamedTuple

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

    The first one is the network without a pyramid, if it was tested by the same views. They may differ in anything.

    Raises NotTested if no two networks were tested by one protocol with two seeds or more, and ValueError if they were
    tested on different images.
    """
    page = Page("What so many seeds can show")
    page.text(
        "Top-1 errors in %: mean ± standard deviation over seeds. Gain: how much lower the error is than that of the "
        "first network by the same views, with its 95 % interval over images and training runs. Then the smallest true "
        "gain, in points, whose interval would exclude 0 in 80 % of repetitions: with as many seeds on each side as "
        "there are, and with 5 to 40; and the seeds that one point needs. They are estimates from the spread of these "
        "runs, which few seeds know badly; the choice of the images stays, however many seeds there are."
    )
    groups = sorted(grouped(runs).values(), key=lambda seeds: pyramid_order(seeds[0]))
    rows, rows_by_seed = [], []
    for views in sorted({views for run in runs for views in run.scores}):
        tested = [_Tested(_name(seeds[0]), scores) for seeds in groups if len(scores := _scores(seeds, views)) > 1]
        if len(tested) > 1:
            rows += _rows(views, tested)
            rows_by_seed += _rows_by_seed(views, tested)
    if not rows:
        raise NotTested("no two networks were tested by the same views with two seeds or more")

    smallest = ["smallest gain with these seeds", *(f"smallest gain with {seeds} seeds" for seeds in _SEEDS)]
    page.table(["network", "views", "images", "seeds", "top-1 error", "gain", *smallest, "seeds for 1 point"], rows)
    if rows_by_seed:
        page.text(
            "The gains above take the runs for independent. Networks of equal shape start from the same weights with "
            "the same seed, so their errors may rise and fall together; then comparing seed by seed, as below, tells "
            "more. Decide which of the two counts before looking at either."
        )
        shown = ["shared seeds", "correlation of errors", "gain, seed by seed", "smallest gain with these seeds"]
        page.table(["network", "views", *shown], rows_by_seed)
    return page


class _Tested(NamedTuple):
    """A network and its tests by one protocol, by seed."""

    name: str  # without the seed
    scores: dict[int, Scores]

    def mistakes(self, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Returns which images each run got wrong, bool (runs, n), for all seeds or for `seeds`."""
        return np.stack([wrong(self.scores[seed]) for seed in seeds or self.scores])


def _scores(seeds: Sequence[Run], views: str) -> dict[int, Scores]:
    return {int(run.config["seed"]): run.scores[views] for run in seeds if views in run.scores}


def _name(run: Run) -> str:
    """Returns the name of a run without its seed."""
    return re.sub(r"-seed\d+(?=-|$)", "", run.path.name)


def _rows(views: str, tested: Sequence[_Tested]) -> list[list[str]]:
    """Returns a row for each network; the first is the reference."""
    first, *others = tested
    for network in tested:
        for scores in network.scores.values():
            check_same_images(next(iter(first.scores.values())), scores)
    reference = first.mistakes()
    rows = [[*_error_cells(first.name, reference, views), *[""] * (len(_SEEDS) + 3)]]
    for network in others:
        mistakes = network.mistakes()
        rows.append([*_error_cells(network.name, mistakes, views), *_gain_cells(reference, mistakes)])
    return rows


def _rows_by_seed(views: str, tested: Sequence[_Tested]) -> list[list[str]]:
    """Returns a row for each network that shares three seeds or more with the first, compared seed by seed."""
    first, *others = tested
    rows = []
    for network in others:
        seeds = sorted(first.scores.keys() & network.scores.keys())
        if len(seeds) < 3:  # the correlation of two is always 1 or -1
            continue
        reference, mistakes = first.mistakes(seeds), network.mistakes(seeds)
        errors = reference.mean(axis=1), mistakes.mean(axis=1)
        correlation = f"{np.corrcoef(*errors)[0, 1]:+.2f}" if all(np.ptp(side) for side in errors) else ""
        interval = gain_interval(reference, mistakes, paired=True)
        smallest = spread_of(reference, mistakes, paired=True).shown_gain(len(seeds))
        gain = gain_text(reference.mean() - mistakes.mean(), *interval)
        rows.append([network.name, views, str(len(seeds)), correlation, gain, percent(smallest)])
    return rows


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
