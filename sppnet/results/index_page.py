"""The first page of a report: all runs by data set, with errors, learning curves and links."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from sppnet.results.comparisons import INTERVALS_COVER
from sppnet.results.histories import training_curve
from sppnet.results.mistakes import Rate
from sppnet.results.page import Cell, Link, Page
from sppnet.results.plots import error_dots
from sppnet.results.report_plots import learning_curves
from sppnet.results.runs import Run, grouped
from sppnet.results.sweeps import images_text, validation_errors
from sppnet.runtime.run_directory import without_folders

INDEX = "index.html"  # its name in the folder of a report

_MOST_CURVES = 12  # in one plot: six colours, each with two kinds of lines
_HEADERS = ["run", "pyramid", "sizes", "seed", "epochs", "hours", "top-1 error in % (95 % interval)"]


def index_page(
    runs: Sequence[Run], addresses: Mapping[Path, str], pages: Sequence[tuple[str, str]], notes: Sequence[str]
) -> Page:
    """Makes the first page of a report.

    Args:
        runs: all runs, unfinished ones too.
        addresses: of the page of every finished run, relative to this page.
        pages: titles and addresses of the other pages.
        notes: what the report lacks and why, a line each.
    """
    page = Page("Report")
    if pages:
        page.links(pages)
    for group in by_data([run for run in runs if run.result is not None]):
        _add_group(page, group, addresses)

    unfinished = [run for run in runs if run.result is None]
    if unfinished:
        page.heading("Not finished")
        page.table(["run", "network"], [[run.path.name, run.setting_text()] for run in unfinished])
    if notes:
        page.heading("Not in this report")
        for note in notes:
            page.text(note)
    return page


def by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups finished runs by their validation images: errors of one group are of the same images."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_images_key(run), []).append(run)
    return list(groups.values())


def _images_key(run: Run) -> str:
    """Returns a hash of the validation images; the data section for runs of old versions that were not tested."""
    if run.result is not None and run.result.validation_images:
        return run.result.validation_images
    for scores in run.scores.values():
        if scores.about.get("images"):
            return str(scores.about["images"])
    return json.dumps(without_folders(run.config["data"]), sort_keys=True)


def _add_group(page: Page, runs: Sequence[Run], addresses: Mapping[Path, str]) -> None:
    """Adds the runs on one data set: a table, a plot of errors, and learning curves."""
    networks = _networks(runs)
    page.heading(f"{runs[0].config['data']['source']}, {images_text(runs)} validation images")
    hardware = sorted({run.result.hardware for run in runs if run.result is not None})
    page.text(
        "Errors after training on the centre crop of every validation image, with 95 % intervals over images only "
        f"(Wilson). Hours of training with validation, on {', '.join(hardware)}."
    )
    page.table(_HEADERS, [_row(run, addresses) for seeds in networks.values() for run in seeds])

    lines = [validation_errors(label, seeds) for label, seeds in networks.items()]
    caption = f"Centre crop of {images_text(runs)} images after training, with 95 % intervals {INTERVALS_COVER}."
    page.figure(error_dots(lines, "top-1 error"), f"top-1 error of {', '.join(networks)}", caption)
    _add_curves(page, networks)


def _networks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs by network, those that differ in seed only under one name: theirs without the seed."""
    networks: dict[str, list[Run]] = {}
    for seeds in grouped(runs).values():
        name = re.sub(r"-seed\d+(-[0-9a-f]{8})?$", "", seeds[0].path.name)
        networks[name if name not in networks else str(seeds[0].path)] = seeds
    return networks


def _row(run: Run, addresses: Mapping[Path, str]) -> list[Cell]:
    """Returns the cells of a finished run."""
    result = run.result
    if result is None:
        raise ValueError(f"{run.path}: has not finished training")
    levels = "none" if run.levels is None else ", ".join(map(str, run.levels))
    trained = [str(result.epochs or len(result.history)), f"{result.seconds / 3600:.2f}"]
    cells = [
        levels,
        ", ".join(map(str, run.sizes)),
        str(run.config["seed"]),
        *trained,
        Rate.of(result.top1_wrong, result.n).text,
    ]
    return [Link(run.path.name, quote(addresses[run.path])), *cells]


def _add_curves(page: Page, networks: Mapping[str, Sequence[Run]]) -> None:
    """Adds the learning curves of the networks, of the first ones if there are many."""
    shown = list(networks.items())[:_MOST_CURVES]
    curves = [training_curve(label, seeds) for label, seeds in shown]
    if not any(any(curve.runs) or curve.validations for curve in curves):
        return
    more = f" The first {len(shown)} of {len(networks)} networks." if len(shown) < len(networks) else ""
    small = any(not largest for curve in curves for losses in curve.runs for _, largest in losses.values())
    page.figure(
        learning_curves(curves),
        "training loss and validation error by epoch",
        f"A line per run above, a line per network below: centre crop of {images_text(networks[shown[0][0]])} images, "
        f"95 % intervals {INTERVALS_COVER}."
        + (" Hollow: epochs at less than the largest size of the run." if small else "")
        + more,
    )
