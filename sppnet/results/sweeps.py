"""Pages of runs that differ in one thing: error against the pyramid, and between views."""

import statistics
from collections.abc import Sequence

import numpy as np

from sppnet.results.comparisons import (
    INTERVALS_COVER,
    NotTested,
    check_same_images,
    gain_text,
    percent,
    wrong,
)
from sppnet.results.costs import parameters
from sppnet.results.page import Page
from sppnet.results.plots import Errors, Estimate, error_dots
from sppnet.results.records import shows_top5
from sppnet.results.runs import VARIANTS, Run, distinct_texts, grouped
from sppnet.results.statistics import counts_interval, gain_interval
from sppnet.runtime.checkout import shown_command

_REFERENCE_VIEWS = "ten_crop"
_GRID_WITHOUT_PYRAMID = 6  # cells per side of the maps that fc6 sees without a pyramid


def pyramid_page(runs: Sequence[Run]) -> Page:
    """Makes a page of the error on the centre crop against the pyramid, for runs that differ in pyramid and seed."""
    page = Page("Error against the pyramid")
    page.text(
        "Errors in % on the centre crop of every validation image, after the last epoch: mean ± standard deviation "
        "over seeds, or one run. Two controls: one level with about as many bins as the pyramid ([7] has 49), and a "
        "pyramid with fewer parameters than the network without one. If these were run, the note marks them."
    )
    blocks = grouped([run for run in runs if run.result is not None], "pooling").values()
    texts = distinct_texts([block[0] for block in blocks], "pooling", "sizes")
    for text, block in zip(texts, blocks, strict=True):
        page.heading(f"{text}, sizes {'/'.join(map(str, block[0].sizes))}")
        groups = sorted(grouped(block).values(), key=lambda seeds: pyramid_order(seeds[0]))
        baseline = next((parameters(seeds[0]) for seeds in groups if seeds[0].levels is None), None)
        top5 = any(run.result is not None and shows_top5(run.result.num_classes) for run in block)
        page.table(_pyramid_headers(top5), [_pyramid_row(seeds, baseline, top5) for seeds in groups])

        lines = [validation_errors(pyramid_text(seeds[0]), seeds) for seeds in groups]
        page.figure(
            error_dots(lines, "top-1 error"),
            "top-1 error of " + ", ".join(line.label for line in lines),
            f"Centre crop of {images_text(block)} images after training, with 95 % intervals {INTERVALS_COVER}.",
        )
    return page


def validation_errors(label: str, seeds: Sequence[Run]) -> Errors:
    """Returns the top-1 errors of finished runs on their validation images, as a line of a plot.

    Args:
        label: of the line.
        seeds: finished runs that differ in seed only.
    """
    results = [run.result for run in seeds if run.result is not None]
    errors = [result.top1_error for result in results]
    interval = counts_interval([result.top1_wrong for result in results], results[0].n)
    mean = Estimate.of(statistics.mean(errors), interval)
    return Errors(label, [100 * error for error in errors], mean)


def images_text(runs: Sequence[Run]) -> str:
    """Formats the number of validation images of finished runs, several if they differ."""
    return " or ".join(f"{n:,}" for n in sorted({run.result.n for run in runs if run.result is not None}))


def _pyramid_headers(top5: bool) -> list[str]:
    errors = ["top-1 error", "top-5 error"] if top5 else ["top-1 error"]
    return ["pyramid", "bins", "parameters", "seeds", "images", *errors, "seconds per epoch", "note"]


def _pyramid_row(seeds: Sequence[Run], baseline: int | None, top5: bool) -> list[str]:
    """Returns the cells of one pyramid under `_pyramid_headers`.

    Args:
        seeds: finished runs that differ in seed only.
        baseline: parameters of the network without a pyramid, if there is one.
        top5: whether to show top-5 errors.
    """
    run, results = seeds[0], [run.result for run in seeds if run.result is not None]
    count = parameters(run)
    notes = ["one level, no pyramid"] if len(run.levels or ()) == 1 and run.levels != (1,) else []
    notes += ["fewer parameters than no pyramid"] if baseline and count and count < baseline else []
    return [
        pyramid_text(run),
        str(_bins(run)),
        f"{count:,}",
        f"{len(seeds)}",
        f"{results[0].n:,}",
        _mean_text([result.top1_error for result in results]),
        *([_mean_text([result.top5_error for result in results])] if top5 else []),
        f"{_epoch_seconds(seeds):.1f}",
        ", ".join(notes),
    ]


def pyramid_order(run: Run) -> tuple[bool, int, str]:
    """Returns a key that sorts runs: no pyramid first, then by the number of bins."""
    return run.levels is not None, _bins(run), run.setting()


def pyramid_text(run: Run) -> str:
    """Names the pyramid of a run."""
    return "none (one 6 x 6 grid)" if run.levels is None else ", ".join(map(str, run.levels))


def _bins(run: Run) -> int:
    return sum(n * n for n in run.levels or (_GRID_WITHOUT_PYRAMID,))


def _mean_text(errors: Sequence[float]) -> str:
    """Formats the mean of fractions in %, with their standard deviation if there are several."""
    spread = f" ± {percent(statistics.stdev(errors))}" if len(errors) > 1 else ""
    return percent(statistics.mean(errors)) + spread


def _epoch_seconds(seeds: Sequence[Run]) -> float:
    """Returns the median seconds of training per epoch, without validation."""
    seconds = [
        run.result.training_images / epoch.images_per_second
        for run in seeds
        if run.result is not None
        for epoch in run.result.history
    ]
    return statistics.median(seconds)


def views_page(runs: Sequence[Run]) -> Page:
    """Makes a page of how close the scores of every protocol are to those of the ten crops by the same networks.

    Raises NotTested if no run was tested by both.
    """
    page = Page(f"Views against {_REFERENCE_VIEWS}")
    page.text(
        f"How far the mean softmax scores p of other views are from the scores q of `{_REFERENCE_VIEWS}` by the same "
        "networks. Divergence: sum of q log(q / p) over the classes (Kullback and Leibler), mean over images. Same "
        "top-1: images whose highest score is that of the same class. Gain: how much lower the top-1 error is, with "
        "its 95 % interval over images and runs, or over images only for one run. Means over seeds."
    )
    groups = grouped(runs).values()
    texts = distinct_texts([seeds[0] for seeds in groups], "pooling", "sizes")
    for text, seeds in zip(texts, groups, strict=True):
        tested = [run for run in seeds if _REFERENCE_VIEWS in run.scores]
        names = list(dict.fromkeys(views for run in tested for views in run.scores if views != _REFERENCE_VIEWS))
        rows = [_closeness(views, [run for run in tested if views in run.scores]) for views in names]
        if rows:
            page.heading(f"{VARIANTS.get(seeds[0].variant or '', pyramid_text(seeds[0]))}: {text}")
            page.table(["views", "seeds", "divergence", "same top-1 in %", "top-1 error", "gain"], rows)

    if len(page.blocks) == 1:
        raise NotTested(
            f"these runs were not tested by {_REFERENCE_VIEWS} and other views; do it with "
            f"{shown_command('evaluate')} run=RUN views=[{_REFERENCE_VIEWS},ten_crop_maps]"
        )
    return page


def _closeness(views: str, runs: Sequence[Run]) -> list[str]:
    """Returns the cells of one protocol. All runs have the scores of `views` and of _REFERENCE_VIEWS."""
    from scipy.special import rel_entr  # takes a second

    pairs = [(run.scores[_REFERENCE_VIEWS], run.scores[views]) for run in runs]
    divergences, agreements = [], []
    for reference, other in pairs:
        check_same_images(reference, other)
        q, p = (scores.scores.astype(float) for scores in (reference, other))
        # Scores below float32's smallest number are 0, which would be infinitely far from any other.
        divergences.append(rel_entr(q, p.clip(np.finfo(np.float32).tiny)).sum(axis=1).mean())
        agreements.append((q.argmax(axis=1) == p.argmax(axis=1)).mean())

    baseline, mistakes = (np.stack([wrong(scores) for scores in side]) for side in zip(*pairs, strict=True))
    gain = float(baseline.mean() - mistakes.mean())
    return [
        views,
        f"{len(runs)}",
        f"{np.mean(divergences):.4f}",
        percent(float(np.mean(agreements))),
        _mean_text([float(run_mistakes.mean()) for run_mistakes in mistakes]),
        gain_text(gain, *gain_interval(baseline, mistakes, paired=True)),
    ]
