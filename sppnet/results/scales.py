"""A page of the error against the scale of test images, of the whole image and of the centre crop."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from sppnet.results.comparisons import INTERVALS_COVER, NotTested, check_same_images, error_estimate, gain_text, wrong
from sppnet.results.page import Page
from sppnet.results.plots import error_curves
from sppnet.results.runs import VARIANTS, Run, distinct_texts, grouped
from sppnet.results.scores import Scores
from sppnet.results.statistics import gain_interval
from sppnet.results.sweeps import images_text, pyramid_order, pyramid_text
from sppnet.runtime.checkout import shown_command

Curve = dict[int, list[Scores]]  # scale -> the scores of every run that was tested there


def scales_page(runs: Sequence[Run]) -> Page:
    """Makes a page of the error of the whole image and of the centre crop against the shorter side of test images.

    Raises NotTested if no run was tested at several scales.
    """
    page = Page("Error against the test scale")
    page.text(
        "Top-1 errors in %, one view: means over seeds. Gain: how much lower the error is than that of the first "
        "network of the table, by the same view at the same scale, with its 95 % interval over images and training "
        "runs; over images only where a side has one run."
    )
    blocks = grouped(runs, "pooling", "sizes").values()
    texts = distinct_texts([block[0] for block in blocks], "pooling", "sizes")
    for text, block in zip(texts, blocks, strict=True):
        curves = {key: points for key, points in _curves(block).items() if len(points) > 1}
        if curves:
            page.heading(text)
            _add_errors(page, curves, images_text(block))
            for view in dict.fromkeys(view for _, view in curves):
                _add_gains(page, view, {name: points for (name, of), points in curves.items() if of == view})

    if len(page.blocks) == 1:
        raise NotTested(
            "these runs were not tested at several scales; do it with "
            f"{shown_command('evaluate')} run=RUN views=[center,full] scales=[180,224,256,300,360,448,560]"
        )
    return page


def _curves(block: Sequence[Run]) -> dict[tuple[str, str], Curve]:
    """Returns (network, view) -> its scores by scale. A run that was tested twice by the same view counts once."""
    groups = sorted(grouped(block).values(), key=lambda seeds: pyramid_order(seeds[0]))
    names = [VARIANTS.get(seeds[0].variant or "", f"SPP {pyramid_text(seeds[0])}") for seeds in groups]
    counts = Counter(names)

    curves: dict[tuple[str, str], Curve] = {}
    for name, seeds in zip(names, groups, strict=True):
        network = name if counts[name] == 1 else f"{name} of {'/'.join(map(str, seeds[0].sizes))}"
        for run in seeds:
            views = {_single_view(scores.about["protocol"]): scores for scores in run.scores.values()}
            for view in filter(None, views):
                label, scale = view
                curves.setdefault((network, label), {}).setdefault(scale, []).append(views[view])
    return curves


def _single_view(protocol: Mapping[str, object]) -> tuple[str, int] | None:
    """Returns ("full image" or "centre crop of SIDE", scale) for a protocol of this one view, None for others."""
    scales, full_scales = protocol["scales"], protocol["full_scales"]
    if protocol["mirrored"] or not isinstance(scales, list) or not isinstance(full_scales, list):
        return None
    if len(full_scales) == 1 and not scales:
        return f"full image{', aligned paddings' if protocol['aligned'] else ''}", int(full_scales[0])
    if len(scales) == 1 and not full_scales and protocol["positions"] == ["center"] and not protocol["maps"]:
        return f"centre crop of {protocol['view_size']}", int(scales[0])
    return None


def _add_errors(page: Page, curves: Mapping[tuple[str, str], Curve], images: str) -> None:
    """Adds the table and the plot of errors."""
    estimates = {
        f"{network}, {view}": {scale: error_estimate(_mistakes(tested)) for scale, tested in points.items()}
        for (network, view), points in curves.items()
    }
    scales = sorted({scale for points in estimates.values() for scale in points})
    rows = [
        [str(scale), *(f"{points[scale].value:.2f}" if scale in points else "" for points in estimates.values())]
        for scale in scales
    ]
    page.table(["shorter side", *estimates], rows)
    page.figure(
        error_curves(estimates, "shorter side of the test image in pixels", "top-1 error"),
        "top-1 error against the test scale: " + "; ".join(estimates),
        f"{images} images, one view of each; 95 % intervals {INTERVALS_COVER}.",
    )


def _add_gains(page: Page, view: str, networks: Mapping[str, Curve]) -> None:
    """Adds a table of gains over the first network by one view, if there are several networks."""
    first, *others = networks
    if not others:
        return
    page.text(f"{view}, gain over {first}:")
    rows = [
        [str(scale), *(_gain(networks[first][scale], networks[other].get(scale, [])) for other in others)]
        for scale in sorted(networks[first])
    ]
    page.table(["shorter side", *others], rows)


def _gain(first: Sequence[Scores], other: Sequence[Scores]) -> str:
    """Formats how much lower the error of the other runs is, with its interval; empty if there are none."""
    if not other:
        return ""
    for scores in (*first, *other):
        check_same_images(first[0], scores)
    baseline, mistakes = _mistakes(first), _mistakes(other)
    return gain_text(float(baseline.mean() - mistakes.mean()), *gain_interval(baseline, mistakes))


def _mistakes(tested: Sequence[Scores]) -> np.ndarray:
    """Returns bool (runs, n): the images that each run got wrong."""
    return np.stack([wrong(scores) for scores in tested])
