"""A page of finished runs on the same images, the best first, beside the settings in which they differ."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sppnet.results.comparisons import INTERVALS_COVER
from sppnet.results.page import Page
from sppnet.results.plots import Errors, setting_dots, value_text
from sppnet.results.runs import Run, grouped
from sppnet.results.sweeps import validation_errors
from sppnet.runtime.run_directory import flat, without_folders


def settings_page(runs: Sequence[Run], neutral: Mapping[str, Any]) -> Page:
    """Makes a page of the top-1 errors of finished runs, the best first, with the settings in which they differ.

    Runs on other data have a table of their own. Raises ValueError if no run is finished.

    Args:
        runs: any.
        neutral: sections of the values that settings have where a run does not record them.
    """
    finished = [run for run in runs if run.result is not None]
    if not finished:
        raise ValueError(f"runs: none of these {len(runs)} is finished, and only finished runs have an error")

    page = Page("Runs, the best first")
    page.text(
        "Top-1 errors in % on the centre crop of every validation image, after training: mean ± standard deviation "
        f"over seeds, or one run, and 95 % intervals {INTERVALS_COVER}. The columns after that are the settings in "
        "which the runs differ. The best of many runs, chosen by these images, is a little worse on others."
    )
    if len(finished) < len(runs):
        page.text(f"Not finished, and left out: {len(runs) - len(finished)}.")
    for block in _by_data(finished).values():
        _add_block(page, block, neutral)
    return page


def _by_data(runs: Sequence[Run]) -> dict[tuple[object, ...], list[Run]]:
    """Groups finished runs by their data: its settings, its training images, its validation images."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        assert run.result is not None
        settings = json.dumps(without_folders(run.config["data"]), sort_keys=True)
        images = (run.result.training_images, run.result.n, run.result.validation_images)
        groups.setdefault((settings, *images), []).append(run)
    return groups


def _add_block(page: Page, runs: Sequence[Run], neutral: Mapping[str, Any]) -> None:
    """Adds the table of runs on the same images, and a plot of the error against each setting that differs."""
    groups = grouped(runs).values()
    entries = [(validation_errors(seeds[0].path.name, seeds), _settings(seeds[0], neutral)) for seeds in groups]
    names = sorted({name for _, settings in entries for name in settings})
    differing = [name for name in names if len({str(settings.get(name)) for _, settings in entries}) > 1]
    best_first = sorted(entries, key=lambda entry: entry[0].mean.value)

    result = runs[0].result
    assert result is not None
    page.heading(f"{runs[0].config['data']['source']}: {result.training_images:,} + {result.n:,} images")
    headers = ["top-1 error", "95 % interval", "seeds", *(f"`{name}`" for name in differing), "first run"]
    rows = [
        [*_error_cells(line), *(value_text(settings.get(name)) for name in differing), line.label]
        for line, settings in best_first
    ]
    page.table(headers, rows)

    if differing and len(rows) > 2:
        errors = [line.mean.value for line, _ in best_first]
        points = {name: [settings.get(name) for _, settings in best_first] for name in differing}
        page.figure(
            setting_dots(points, errors, "top-1 error"),
            "top-1 error against " + ", ".join(differing),
            f"A dot per setting, {len(rows)} in all. Other settings differ as well within a plot.",
        )


def _settings(run: Run, neutral: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run, but its data and seed, by their keys on the command line."""
    return flat(neutral) | flat({key: value for key, value in run.config.items() if key not in ("data", "seed")})


def _error_cells(line: Errors) -> list[str]:
    """Returns the error, its interval, and the number of seeds."""
    spread = f" ± {statistics.stdev(line.seeds):.2f}" if len(line.seeds) > 1 else ""
    return [f"{line.mean.value:.2f}{spread}", f"{line.mean.low:.2f} to {line.mean.high:.2f}", str(len(line.seeds))]
