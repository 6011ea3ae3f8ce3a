"""Error against pyramid, error against test scale, and networks compared with one another: pages from records alone."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from sppnet.results.comparisons import (
    check_same_images,
    classes_table,
    comparisons_table,
    confusion_matrix,
    error_text,
    errors_table,
    percent,
    protocol_lines,
    signed,
    wrong,
)
from sppnet.results.costs import parameters
from sppnet.results.page import Page
from sppnet.results.plots import Errors, confusion_picture, error_curves, error_dots
from sppnet.results.records import Scores
from sppnet.results.runs import VARIANTS, Run, grouped
from sppnet.results.statistics import gain_interval

REFERENCE_VIEWS = "ten_crop"


def pyramid_page(runs: Sequence[Run]) -> Page:
    """Error on the centre crop against the pyramid, for runs that differ in pyramid and seed alone."""
    page = Page("Error against the pyramid")
    page.text(
        "Errors in % on the centre crop of every validation image, after the last epoch: mean ± standard deviation "
        "over seeds, or one run. Two rows answer what the paper argues about, where they were run: about as many bins "
        "on one level ([7] has 49: is it the bins, or the pyramid?), and fewer parameters than without a pyramid."
    )
    for block in grouped([run for run in runs if run.result is not None], "pooling").values():
        groups = sorted(grouped(block).values(), key=lambda group: _order(group[0]))
        page.heading(block[0].setting_text() + f", sizes {'/'.join(map(str, block[0].sizes))}")
        without = next((parameters(group[0]) for group in groups if group[0].levels is None), None)
        rows, lines = [], []
        for group in groups:
            results = [run.result for run in group if run.result is not None]
            top1_errors = [result.top1_error for result in results]
            count = parameters(group[0])
            remarks = ["one level, no pyramid"] if len(group[0].levels or ()) == 1 and group[0].levels != (1,) else []
            remarks += ["fewer parameters than no pyramid"] if without and count and count < without else []
            rows.append(
                [
                    _pyramid_text(group[0]),
                    _bins_text(group[0]),
                    f"{count:,}",
                    f"{len(group)}",
                    f"{results[0].n:,}",
                    _mean_text(top1_errors),
                    _mean_text([result.top5_error for result in results]),
                    f"{_epoch_seconds(group):.1f}",
                    ", ".join(remarks),
                ]
            )
            lines.append(Errors(_pyramid_text(group[0]), [100 * error for error in top1_errors], None))
        headers = [
            "pyramid",
            "bins",
            "parameters",
            "seeds",
            "images",
            "top-1 error",
            "top-5 error",
            "seconds per epoch",
            "note",
        ]
        page.table(headers, rows)
        page.figure(error_dots(lines, "top-1 error"), "top-1 error of " + ", ".join(line.label for line in lines))
    return page


def _order(run: Run) -> tuple[bool, int, str]:
    """No pyramid first, then by the number of bins."""
    return run.levels is not None, sum(n * n for n in run.levels or ()), run.setting()


def _pyramid_text(run: Run) -> str:
    return "none (one 6 x 6 grid)" if run.levels is None else ", ".join(map(str, run.levels))


def _bins_text(run: Run) -> str:
    return str(36 if run.levels is None else sum(n * n for n in run.levels))


def _mean_text(errors: list[float]) -> str:
    spread = f" ± {percent(statistics.stdev(errors))}" if len(errors) > 1 else ""
    return percent(statistics.mean(errors)) + spread


def _epoch_seconds(group: Sequence[Run]) -> float:
    """Seconds of training per epoch, validation aside."""
    seconds = [
        run.result.training_images / epoch.images_per_second
        for run in group
        if run.result is not None
        for epoch in run.result.history
    ]
    return statistics.median(seconds)


def scales_page(runs: Sequence[Run]) -> Page:
    """Error of the whole image and of the centre crop against the shorter side at which images are tested."""
    page = Page("Error against the test scale")
    page.text("Top-1 errors in %, one view: mean over seeds, with a band from the lowest to the highest.")
    for block in grouped(runs, "pooling", "sizes").values():
        curves: dict[str, dict[int, list[float]]] = {}
        for group in sorted(grouped(block).values(), key=lambda group: _order(group[0])):
            name = VARIANTS.get(group[0].variant or "", f"SPP {_pyramid_text(group[0])}")
            for run in group:
                for scores in run.scores.values():
                    found = _single_view(scores.about["protocol"])
                    if found is not None:
                        points = curves.setdefault(f"{name}, {found[0]}", {})
                        points.setdefault(found[1], []).append(100 * float(wrong(scores).mean()))
        curves = {label: points for label, points in curves.items() if len(points) > 1}
        if not curves:
            continue
        page.heading(block[0].setting_text())
        scales = sorted({scale for points in curves.values() for scale in points})
        rows = [[str(scale)] + [_mean_or_blank(points.get(scale)) for points in curves.values()] for scale in scales]
        page.table(["shorter side", *curves], rows)
        figure = error_curves(curves, "shorter side of the test image in pixels", "top-1 error")
        page.figure(figure, "top-1 error against the test scale: " + "; ".join(curves))
    if len(page.blocks) == 1:
        raise ValueError(
            "these runs were not tested at several scales; do it with "
            "python scripts/evaluate.py run=RUN views=[center,full] scales=[180,224,256,300,360,448,560]"
        )
    return page


def _single_view(protocol: Mapping[str, object]) -> tuple[str, int] | None:
    """("full image" or "centre crop", scale) of a protocol that is just that."""
    scales, full_scales = protocol["scales"], protocol["full_scales"]
    if protocol["mirrored"] or not isinstance(scales, list) or not isinstance(full_scales, list):
        return None
    if len(full_scales) == 1 and not scales:
        return f"full image{', aligned paddings' if protocol['aligned'] else ''}", int(full_scales[0])
    if len(scales) == 1 and not full_scales and protocol["positions"] == ["center"] and not protocol["maps"]:
        return "centre crop", int(scales[0])
    return None


def _mean_or_blank(errors: Sequence[float] | None) -> str:
    return f"{statistics.mean(errors):.2f}" if errors else ""


def comparison_page(runs: Sequence[Run]) -> Page:
    """Every protocol that all runs have: errors, their combination, and paired tests against the first."""
    page = Page("Networks compared")
    for i, run in enumerate(runs):
        page.text(f"{'First: ' if i == 0 else ''}`{run.path}`: {run.setting_text()}")
    shared = [views for views in runs[0].scores if all(views in run.scores for run in runs)]
    if not shared:
        raise ValueError(
            f"{', '.join(str(run.path) for run in runs)}: no views that all were tested on; do it with "
            "python scripts/evaluate.py run=[RUN1,RUN2] views=[center]"
        )
    tested: dict[str, dict[str, Scores]] = {
        views: {run.path.name: run.scores[views] for run in runs} for views in shared
    }
    page.text("Views: " + "; ".join(protocol_lines(tested)) + ".")
    page.heading("Errors")
    page.text("Intervals are over images only (Wilson).")
    page.table(*errors_table(tested))
    if len(runs) > 1:
        page.heading("On the same images")
        page.text(
            "Gain: how much lower the top-1 error is than that of the first. p: McNemar's exact test, two-sided. Both "
            "are over images only: they compare these trained networks, and other training runs may differ more."
        )
        page.table(*comparisons_table(tested))
    return page


def views_page(runs: Sequence[Run]) -> Page:
    """How close the scores of every protocol come to those of the ten crops, for the same trained networks."""
    page = Page(f"Views against {REFERENCE_VIEWS}")
    page.text(
        f"How far the mean softmax scores p of other views are from the scores q of `{REFERENCE_VIEWS}` by the same "
        "networks. Divergence: sum of q log(q / p) over the classes (Kullback and Leibler), mean over images. Same "
        "top-1: images whose highest score is that of the same class. Gain: how much lower the top-1 error is, with "
        "its 95 % interval over images and runs, or over images only for one run. Means over seeds."
    )
    for group in grouped(runs).values():
        tested = [run for run in group if REFERENCE_VIEWS in run.scores]
        names = list(dict.fromkeys(views for run in tested for views in run.scores if views != REFERENCE_VIEWS))
        rows = [_closeness(views, [run for run in tested if views in run.scores]) for views in names]
        if rows:
            page.heading(f"{VARIANTS.get(group[0].variant or '', _pyramid_text(group[0]))}: {group[0].setting_text()}")
            page.table(["views", "seeds", "divergence", "same top-1 in %", "top-1 error", "gain"], rows)
    if len(page.blocks) == 1:
        raise ValueError(
            f"these runs were not tested by {REFERENCE_VIEWS} and other views; do it with "
            f"python scripts/evaluate.py run=RUN views=[{REFERENCE_VIEWS},ten_crop_maps]"
        )
    return page


def _closeness(views: str, runs: Sequence[Run]) -> list[str]:
    from scipy.special import rel_entr

    pairs = [(run.scores[REFERENCE_VIEWS], run.scores[views]) for run in runs]
    divergences, agreements = [], []
    for reference, other in pairs:
        check_same_images(reference, other)
        q, p = (scores.scores.astype(float) for scores in (reference, other))
        # Scores below float32's smallest number are 0, and would be infinitely far from any other.
        divergences.append(rel_entr(q, p.clip(np.finfo(np.float32).tiny)).sum(axis=1).mean())
        agreements.append((q.argmax(axis=1) == p.argmax(axis=1)).mean())
    baseline, errors = (np.stack([wrong(scores) for scores in side]) for side in zip(*pairs, strict=True))
    gain = signed(float(baseline.mean() - errors.mean()), *gain_interval(baseline, errors, same_runs=True))
    return [
        views,
        f"{len(runs)}",
        f"{np.mean(divergences):.4f}",
        percent(float(np.mean(agreements))),
        _mean_text([float(one.mean()) for one in errors]),
        gain,
    ]


def classes_page(run: Run) -> Page:
    """Errors by class and the confusion matrix, for every protocol that the run was tested by."""
    page = Page(f"Errors by class: {run.path.name}")
    if not run.scores:
        raise ValueError(
            f"{run.path}: not tested yet; do it with python scripts/evaluate.py run={run.path} views=[center]"
        )
    for views, scores in run.scores.items():
        classes = scores.about["classes"]
        page.heading(
            f"{views}: top-1 error {error_text(wrong(scores))} % of {len(scores.labels):,} images "
            "(95 % interval over images only)"
        )
        page.table(*classes_table(scores, classes))
        picture = confusion_picture(confusion_matrix(scores), classes)
        page.figure(picture, f"confusion matrix of {len(classes)} classes")
    return page
