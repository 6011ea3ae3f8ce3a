"""The page of one run: how it was trained, its errors by protocol and by class, its mistakes, its calibration."""

from collections.abc import Sequence

import yaml

from sppnet.results.comparisons import NotTested, error_estimate, error_text, top_counts, wrong
from sppnet.results.histories import training_curve
from sppnet.results.missing import training_command
from sppnet.results.mistakes import Rate
from sppnet.results.page import Page
from sppnet.results.plots import Errors, error_dots
from sppnet.results.records import Result, shows_top5
from sppnet.results.report_plots import learning_curves
from sppnet.results.runs import Run
from sppnet.results.scores import Scores
from sppnet.results.scores_sections import OVER_IMAGES, add_scores
from sppnet.results.size_section import add_sizes
from sppnet.results.tested_images import TestedImages
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.progress import duration


def run_page(run: Run, views: str | None, tested: TestedImages | None) -> Page:
    """Makes the page of a finished run.

    Args:
        run: the run.
        views: the protocol for all that is shown of one protocol only; None, or one that the run was not tested by:
            the one with the lowest top-1 error.
        tested: the images of its tests; None: there is nothing about sizes on the page, and no thumbnails.

    Raises ValueError if the run is not finished.
    """
    page = Page(run.path.name)
    if run.result is None:
        raise ValueError(f"{run.path}: has not finished training")
    _add_summary(page, run, run.result)
    _add_training(page, run, run.result)
    if not run.scores:
        command = f"{shown_command('evaluate')} run={run.path} views=[center]"
        page.text(f"Not tested yet, so that nothing is known about single images; do it with `{command}`.")
        return page

    _add_errors(page, run)
    shown = shown_views(run, views)
    reason = "which was asked for" if shown == views else "which has the lowest top-1 error of these"
    page.text(f"All that follows is by the protocol `{shown}`, {reason}; `views=NAME` of the report chooses another.")
    add_scores(page, run.scores[shown], tested)
    if tested is not None:
        compared = dict.fromkeys(("center", "full", shown))
        add_sizes(page, {name: run.scores[name] for name in compared if name in run.scores}, tested.sizes)
    return page


def classes_page(run: Run) -> Page:
    """Makes a page of the errors of a run: by every protocol, and by class by the one with the lowest error.

    Raises NotTested if it was not tested.
    """
    page = Page(f"Errors by class: {run.path.name}")
    if not run.scores:
        raise NotTested(
            f"{run.path}: not tested yet; do it with {shown_command('evaluate')} run={run.path} views=[center]"
        )
    _add_errors(page, run)
    shown = shown_views(run, None)
    page.text(f"All that follows is by the protocol `{shown}`, which has the lowest top-1 error.")
    add_scores(page, run.scores[shown], None)
    return page


def shown_views(run: Run, views: str | None) -> str:
    """Returns the protocol to show: the one that was asked for if the run was tested by it, else the best."""
    if views in run.scores:
        return str(views)
    return min(run.scores, key=lambda name: float(wrong(run.scores[name]).mean()))


# How it was trained.


def _add_summary(page: Page, run: Run, result: Result) -> None:
    """Adds a table of the run's records, its configuration and its command."""
    data = run.config["data"]
    source, root = data["source"], data.get("file") or data.get("root")
    images = f"{result.training_images:,} training and {result.n:,} validation images, {result.num_classes} classes"
    top5 = [["top-5 error", f"{Rate.of(result.top5_wrong, result.n).text} %"]] if shows_top5(result.num_classes) else []

    rows = [
        ["network", result.network or run.setting_text()],
        ["data", f"{source}{f' in {root}' if root else ''}: {images}"],
        ["training sizes", ", ".join(map(str, run.sizes))],
        ["epochs", f"{result.epochs or len(result.history)}, in {duration(result.seconds)} on {result.hardware}"],
        ["top-1 error", f"{Rate.of(result.top1_wrong, result.n).text} %, {result.protocol or 'centre crop'}"],
        *top5,
        ["seed", str(run.config["seed"])],
        *_origin(result),
    ]

    page.table(["run", str(run.path)], rows)
    page.code(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True), "Configuration")
    page.code(training_command(run).strip("`"), "Command of this training")


def _origin(result: Result) -> list[list[str]]:
    """Returns rows of what a result was made with, as far as it is recorded."""
    versions = ", ".join(f"{name} {version}" for name, version in (result.versions or {}).items() if version)
    known = [("precision", result.precision), ("versions", versions), ("commit", result.commit)]
    return [[name, value] for name, value in known if value]


def _add_training(page: Page, run: Run, result: Result) -> None:
    """Adds the learning curves of the run."""
    curve = training_curve(run.path.name, [run])
    if not any(curve.runs) and not curve.validations:
        return
    page.heading("Training")
    small = any(not largest for losses in curve.runs for _, largest in losses.values())
    page.figure(
        learning_curves([curve]),
        "training loss and validation error by epoch",
        f"Validation on the centre crop of {result.n:,} images, {OVER_IMAGES}."
        + (" Hollow: epochs at less than the largest size." if small else ""),
    )


# Errors.


def _add_errors(page: Page, run: Run) -> None:
    """Adds the errors by every protocol, the lowest first."""
    page.heading("Errors by protocol")
    tested = sorted(run.scores.items(), key=lambda item: float(wrong(item[1]).mean()))
    counts = top_counts(scores for _, scores in tested)
    headers = [
        "protocol",
        "top-1 error in % (95 % interval)",
        *["top-5 error in %"][: len(counts) - 1],
        "images",
        "views",
    ]
    page.table(headers, [_protocol_row(name, scores, counts) for name, scores in tested])
    lines = []
    for name, scores in tested:
        mean = error_estimate(wrong(scores)[None])
        lines.append(Errors(name, [mean.value], mean))
    caption = f"{len(tested[0][1].labels):,} images of one run, {OVER_IMAGES}."
    page.figure(error_dots(lines, "top-1 error"), "top-1 error by protocol", caption)


def _protocol_row(name: str, scores: Scores, counts: Sequence[int]) -> list[str]:
    errors = [error_text(wrong(scores, k)) for k in counts]
    return [name, *errors, f"{len(scores.labels):,}", str(scores.about.get("protocol_text", ""))]
