"""The paper's classification tables from our runs, beside the paper's numbers where the data is ImageNet."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sppnet.results.comparisons import (
    INTERVALS_COVER,
    check_same_images,
    error_estimate,
    error_text,
    gain_text,
    p_text,
    percent,
    protocol_lines,
    top_counts,
    wrong,
)
from sppnet.results.costs import training_hours
from sppnet.results.missing import missing_tests, missing_trainings, paper_command, paper_estimate
from sppnet.results.page import Page
from sppnet.results.paper import PAPER, TABLES, PaperErrors, TableSpec, variant_label
from sppnet.results.plots import Errors, error_dots
from sppnet.results.runs import VARIANTS, Run, distinct_texts, grouped
from sppnet.results.scores import Scores
from sppnet.results.statistics import gain_interval, paired_test

# What the interval of a gain covers: with two or more runs on both sides, and with fewer.
OVER_BOTH, OVER_IMAGES = "over images and training runs", "over images only"


def table_page(name: str, runs: Sequence[Run]) -> Page:
    """Makes the page of one of TABLES, for every network, data set and recipe of the runs.

    Compared runs differ in pyramid, sizes and seed only. If all runs used other data, the paper's untrained networks
    are not listed.
    """
    spec = TABLES[name]
    page = Page(spec.title)
    page.text(
        "Errors in % on the validation images after training. One run: with its 95 % interval over images only "
        "(Wilson). Several: mean ± standard deviation over seeds. Gain: how much lower the error is than "
        + ("without a pyramid" if spec.gain_over_no_spp else "in the first of these views, for runs tested by both")
        + f", with its 95 % interval {OVER_BOTH}; {OVER_IMAGES} where a side has one run. McNemar's exact p, over "
        "images only, for every seed of both."
    )

    shown = set()
    table_runs = [run for run in runs if run.variant in spec.variants or spec.was_run(run)]
    blocks = list(grouped(table_runs, "pooling", "sizes").values())
    texts = distinct_texts([block[0] for block in blocks], "pooling", "sizes")
    for text, block in sorted(zip(texts, blocks, strict=True), key=lambda item: (not _on_imagenet(item[1]), item[0])):
        page.heading(text)
        _add_block(page, spec, block, runs)
        if _on_imagenet(block):
            shown.add(block[0].architecture)

    missing = [row for row in spec.paper_rows() if row[0] not in shown]
    if missing and (shown or not blocks):
        _add_missing_networks(page, missing, runs)
    return page


def _add_missing_networks(page: Page, missing: Sequence[tuple[str, str, str]], runs: Sequence[Run]) -> None:
    """Adds the paper's numbers for networks that no run trained. `missing`: (architecture, variant, protocol)."""
    page.heading("ImageNet, not run yet")
    rows = []
    for architecture, variant, views in missing:
        top1, top5 = PAPER[architecture, variant][views]
        network = f"{architecture}, {VARIANTS[variant]}"
        command, estimate = (make(architecture, variant, runs) for make in (paper_command, paper_estimate))
        rows.append([network, views, _number(top1), _number(top5), command, estimate])
    page.table(["network", "views", "paper: top-1", "top-5", "command", "estimate"], rows)


def _add_block(page: Page, spec: TableSpec, block: list[Run], runs: Sequence[Run]) -> None:
    """Adds all runs of one network, data set and recipe, and the commands for what is missing."""
    variants = list(VARIANTS)
    groups = sorted(grouped(block).values(), key=lambda seeds: variants.index(seeds[0].variant or ""))
    rows = _rows(spec, groups)
    if rows:
        _add_rows(page, spec, rows, groups)

    todo = [line for seeds in groups for line in missing_tests(spec, seeds)]
    todo += missing_trainings(spec, block, runs)
    if todo:
        page.text("Not run yet, with the command that does it:")
    for line in todo:
        page.text(line)


class _Row(NamedTuple):
    """The tests of one network by one protocol, with what its gain is counted from."""

    label: str
    views: str
    ours: dict[int, Scores]  # by seed
    reference: dict[int, Scores]  # by seed; empty: the row has no gain
    same_runs: bool  # `reference` holds other tests of the same runs, for some or all seeds of `ours` and no others
    paper: PaperErrors | None
    paper_reference: PaperErrors | None
    hours: str

    def errors(self) -> Errors:
        """Returns the top-1 errors as a line of a plot."""
        mistakes = np.stack([wrong(scores) for scores in self.ours.values()])
        paper = self.paper[0] if self.paper else None
        seeds = list(100 * mistakes.mean(axis=1))
        return Errors(f"{self.label}, {self.views}", seeds, error_estimate(mistakes), paper)


def _rows(spec: TableSpec, groups: Sequence[Sequence[Run]]) -> list[_Row]:
    """Returns the rows of the networks in `groups`, each the seeds of one, for every protocol they were tested by."""
    rows = []
    for seeds in groups:
        for views, first_views in spec.views_of(seeds):
            ours = _scores(seeds, views)
            if not ours:
                continue
            reference = _reference(spec, groups, seeds, views, first_views)
            paper, paper_reference = _paper_errors(spec, seeds, views)
            same_runs, hours = not spec.gain_over_no_spp, training_hours(seeds)
            row = _Row(variant_label(seeds[0]), views, ours, reference, same_runs, paper, paper_reference, hours)
            rows.append(row)
    return rows


def _scores(seeds: Sequence[Run], views: str) -> dict[int, Scores]:
    """Returns the scores of the runs that were tested by `views`, by seed."""
    return {run.config["seed"]: run.scores[views] for run in seeds if views in run.scores}


def _reference(
    spec: TableSpec, groups: Sequence[Sequence[Run]], seeds: Sequence[Run], views: str, first_views: str | None
) -> dict[int, Scores]:
    """Returns the scores that the gain of a network is counted from, by seed; empty if the row has no gain."""
    if spec.gain_over_no_spp:
        baseline = next((group for group in groups if group[0].variant == "none"), [])
        return {} if seeds is baseline else _scores(baseline, views)

    ours, reference = _scores(seeds, views), _scores(seeds, first_views) if first_views else {}
    return {seed: scores for seed, scores in reference.items() if seed in ours}


def _on_imagenet(runs: Sequence[Run]) -> bool:
    """Whether runs of one data set were trained on ImageNet; unfinished ones may not tell."""
    return any(run.on_imagenet for run in runs)


def _paper_errors(spec: TableSpec, seeds: Sequence[Run], views: str) -> tuple[PaperErrors | None, PaperErrors | None]:
    """Returns what the paper prints for the variant of these runs, and what it counts the gain from."""
    if not _on_imagenet(seeds):
        return None, None
    run = seeds[0]
    numbers, without = (PAPER.get((run.architecture, variant), {}) for variant in (run.variant or "", "none"))
    if spec.gain_over_no_spp:
        return numbers.get(views), without.get(views) if run.variant != "none" else None
    return numbers.get(views), numbers.get(spec.views[views] or "")


def _add_rows(page: Page, spec: TableSpec, rows: Sequence[_Row], groups: Sequence[Sequence[Run]]) -> None:
    """Adds the table of errors, notes about it, and the plot."""
    on_imagenet = any(map(_on_imagenet, groups))
    counts = [1, 5] if on_imagenet else top_counts(scores for row in rows for scores in row.ours.values())
    page.table(_headers(on_imagenet, counts), [_cells(row, on_imagenet, counts) for row in rows])

    images_only = [
        f"{row.label} by {row.views}" for row in rows if row.reference and min(len(row.ours), len(row.reference)) == 1
    ]
    if images_only:
        page.text(f"Gains with intervals {OVER_IMAGES}, because a side has one run: {'; '.join(images_only)}.")

    hardware = sorted({run.result.hardware for seeds in groups for run in seeds if run.result})
    page.text(f"Hours of training per run, of all devices together, on {', '.join(hardware)}.")

    tested = {
        views: {row.label: list(row.ours.values())[-1] for row in rows if row.views == views} for views in spec.views
    }
    page.text("Views: " + "; ".join(protocol_lines({views: shown for views, shown in tested.items() if shown})) + ".")

    lines = [row.errors() for row in rows]
    images = len(next(iter(rows[0].ours.values())).labels)
    page.figure(
        error_dots(lines, "top-1 error"),
        f"top-1 error of {', '.join(line.label for line in lines)}",
        f"Top-1 error on {images:,} images by the views named, with 95 % intervals {INTERVALS_COVER}.",
    )


def _headers(on_imagenet: bool, counts: Sequence[int]) -> list[str]:
    errors = []
    for k in (f"top-{count}" for count in counts):
        errors += [f"{k}, paper", f"{k}, ours", "gain, paper", "gain, ours"] if on_imagenet else [f"{k} error", "gain"]
    return ["network", "views", "images", "seeds", *errors, "McNemar p, top-1", "hours"]


def _cells(row: _Row, on_imagenet: bool, counts: Sequence[int]) -> list[str]:
    """Returns the cells of a row under `_headers`: errors and gains, and p of every seed that both sides have.

    Raises ValueError unless all scores are of the same images.
    """
    ours, reference = row.ours, row.reference
    first = next(iter(ours.values()))
    for other in (*ours.values(), *reference.values()):
        check_same_images(first, other)

    cells = [row.label, row.views, f"{len(first.labels):,}", f"{len(ours)}"]
    for index, k in enumerate(counts):
        mistakes = [wrong(scores, k) for scores in ours.values()]
        gain = _gain(row, k) if reference else ""
        if on_imagenet:
            value, base = (row.paper or (None, None))[index], (row.paper_reference or (None, None))[index]
            paper_gain = f"{base - value:+.2f}" if value is not None and base is not None else ""
            cells += [_number(value), _mean_text(mistakes), paper_gain, gain]
        else:
            cells += [_mean_text(mistakes), gain]

    tests = [paired_test(wrong(reference[seed]), wrong(ours[seed])) for seed in ours if seed in reference]
    return [*cells, ", ".join(p_text(test.p) for test in tests), row.hours]


def _gain(row: _Row, k: int) -> str:
    """Formats how much lower the top-k error is than that of the reference, with its interval."""
    reference = np.stack([wrong(scores, k) for scores in row.reference.values()])
    # Tests of the same runs are compared run by run, so that runs without the reference do not count.
    compared = row.reference if row.same_runs else row.ours
    ours = np.stack([wrong(row.ours[seed], k) for seed in compared])
    return gain_text(float(reference.mean() - ours.mean()), *gain_interval(reference, ours, paired=row.same_runs))


def _mean_text(mistakes: Sequence[np.ndarray]) -> str:
    """Formats the error of one run with its interval, or of several with their standard deviation. Each bool (n,)."""
    if len(mistakes) == 1:
        return error_text(mistakes[0])
    errors = [float(run.mean()) for run in mistakes]
    return f"{percent(statistics.mean(errors))} ± {percent(statistics.stdev(errors))}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
