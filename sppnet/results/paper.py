"""The paper's classification tables beside our runs: from records and saved scores alone."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sppnet.folders import ILSVRC_2012
from sppnet.metrics import gain_interval, paired_test
from sppnet.records import Scores
from sppnet.results.comparisons import (
    check_same_images,
    error_text,
    p_text,
    percent,
    protocol_lines,
    signed,
    wrong,
)
from sppnet.results.page import Page
from sppnet.results.plots import Errors, error_dots
from sppnet.results.runs import VARIANTS, Run, estimate, grouped, naming_config, training_hours, training_work

# Errors in % on the validation images of ILSVRC 2012, (top-1, top-5): arXiv:1406.4729v4, Tables 2, 3 and 4, §3.1.2 (30
# bins), §3.1.3 (random sizes), §3.1.5 (multi_view). None where the paper prints no number.
PaperErrors = tuple[float | None, float | None]
PAPER: dict[tuple[str, str], dict[str, PaperErrors]] = {
    ("zf5", "none"): {"ten_crop": (35.99, 14.76)},
    ("zf5", "single"): {"ten_crop": (34.98, 14.14), "center": (38.01, None), "full": (37.55, None)},
    ("zf5", "30bins"): {"ten_crop": (35.06, 14.04)},
    ("zf5", "alternate"): {"ten_crop": (34.60, 13.64), "center": (37.57, None), "full": (37.07, None)},
    ("convnet5", "none"): {"ten_crop": (34.93, 13.92)},
    ("convnet5", "single"): {"ten_crop": (34.38, 13.54)},
    ("convnet5", "alternate"): {"ten_crop": (33.94, 13.33)},
    ("overfeat5", "none"): {"ten_crop": (34.13, 13.52)},
    ("overfeat5", "single"): {"ten_crop": (32.87, 12.80)},
    ("overfeat5", "alternate"): {"ten_crop": (32.26, 12.33)},
    ("overfeat7", "none"): {"ten_crop": (32.01, 11.97)},
    ("overfeat7", "single"): {"ten_crop": (30.36, 11.12), "center": (33.18, None), "full": (32.72, None)},
    ("overfeat7", "random"): {"ten_crop": (30.06, 10.96)},
    ("overfeat7", "alternate"): {
        "ten_crop": (29.68, 10.95),
        "center": (32.57, None),
        "full": (31.25, None),
        "multi_view": (None, 9.36),
        "multi_view_full": (27.86, 9.14),
    },
}

# Protocols that the paper names. Others have rows where they were run, and are not missed where they were not.
NAMED_BY_PAPER = {views for numbers in PAPER.values() for views in numbers}

# How the paper's networks are trained, for estimates: epochs (§3.1.1), sizes, pyramids.
PAPER_EPOCHS = {"zf5": 70, "convnet5": 90, "overfeat5": 90, "overfeat7": 90}
PAPER_SIZES = {"alternate": [224, 180], "random": [180, 224]}
PAPER_LEVELS = {"none": None, "30bins": [4, 3, 2, 1]}
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class TableSpec:
    """One of the paper's tables."""

    title: str
    variants: tuple[str, ...]  # keys of VARIANTS
    views: dict[str, str | None]  # protocol -> the protocol that its gain is counted from
    gain_over_no_spp: bool  # gains are counted from the same views of the network without a pyramid

    def was_run(self, run: Run) -> bool:
        """Whether a network that the paper's table leaves out was tested by what the table is about."""
        about = {views for views, first_views in self.views.items() if first_views is not None}
        return run.variant is not None and not about.isdisjoint(run.scores)


TABLES = {
    "table2": TableSpec("Table 2: the standard 10 views", tuple(VARIANTS), {"ten_crop": None}, True),
    "table3": TableSpec(
        "Table 3: one view, the centre crop or the whole image",
        tuple(VARIANTS),
        {"center": None, "full": "center", "full_aligned": "center"},
        False,
    ),
    "table4": TableSpec(
        "Table 4: 10 views, 96 views on maps, 96 views and 2 whole images",
        ("alternate",),
        {
            "ten_crop": None,
            "multi_view": "ten_crop",
            "multi_view_full": "ten_crop",
            "multi_view_full_aligned": "ten_crop",
        },
        False,
    ),
}


def experiment_of(architecture: str, variant: str) -> str:
    """The file in configs/experiment that trains a network of PAPER."""
    return f"{'ablation' if variant in ('30bins', 'random') else 'table2'}_{architecture}_{variant}"


def table_page(name: str, runs: Sequence[Run]) -> Page:
    """One of TABLES, for every network, data set and recipe that the runs have; on ImageNet beside the paper's numbers.

    What is compared differs in pyramid, sizes and seed alone. Where there are runs on other data only, ImageNet is left
    out.
    """
    spec = TABLES[name]
    page = Page(spec.title)
    page.text(
        "Errors in % on the validation images after training. One run: with its 95 % interval (Wilson). Several: mean "
        "± standard deviation over seeds. Gain: how much lower the error is than "
        + ("without a pyramid" if spec.gain_over_no_spp else "in the first of these views")
        + ", with its 95 % interval (bootstrap over images and seeds), and McNemar's exact p for every seed of both."
    )
    shown = set()
    known = [run for run in runs if run.variant in spec.variants or spec.was_run(run)]
    blocks = list(grouped(known, "pooling", "sizes").values())
    for block in sorted(blocks, key=lambda block: (not block[0].on_imagenet, block[0].setting_text())):
        _add_block(page, spec, block, runs)
        if block[0].on_imagenet:
            shown.add(block[0].architecture)
    missing = [row for row in _paper_rows(spec) if row[0] not in shown]
    if missing and (shown or not blocks):
        page.heading("ImageNet, not run yet")
        page.table(
            ["network", "views", "paper: top-1", "top-5", "command", "estimate"],
            [
                [
                    f"{a}, {VARIANTS[v]}",
                    views,
                    *map(_number, PAPER[a, v][views]),
                    _train_command(a, v),
                    _paper_estimate(a, v, runs),
                ]
                for a, v, views in missing
            ],
        )
    return page


def _paper_rows(spec: TableSpec) -> list[tuple[str, str, str]]:
    """(architecture, variant, protocol) of every number of the paper's table."""
    return [
        (architecture, variant, views)
        for (architecture, variant), numbers in PAPER.items()
        for views in spec.views
        if variant in spec.variants and views in numbers
    ]


def _add_block(page: Page, spec: TableSpec, block: list[Run], runs: Sequence[Run]) -> None:
    """Everything of one network, data set and recipe."""
    first = block[0]
    page.heading(first.setting_text())
    groups = sorted(grouped(block).values(), key=lambda group: list(VARIANTS).index(group[0].variant or ""))
    baseline = next((group for group in groups if group[0].variant == "none"), [])
    rows, lines, todo = [], [], []
    for group in groups:
        label = _label(group[0])
        for views, first_views in _views_for(spec, group):
            ours = _scores(group, views)
            todo += [
                [f"{label}, seed {run.config['seed']}", views, _next_command(run, views), ""]
                for run in group
                if views not in run.scores
            ]
            if not ours:
                continue
            if spec.gain_over_no_spp:
                reference = {} if group is baseline else _scores(baseline, views)
            else:
                reference = _scores(group, first_views) if first_views else {}
            papers = _paper_errors(spec, first, group[0].variant or "", views)
            rows.append([label, views, *_columns(ours, reference, *papers, first.on_imagenet), training_hours(group)])
            errors = [100 * float(wrong(scores).mean()) for scores in ours.values()]
            lines.append(Errors(f"{label}, {views}", errors, papers[0][0] if papers[0] else None))
    if rows:
        page.table(_headers(first.on_imagenet), rows)
        hardware = sorted({str(run.result["hardware"]) for run in block if run.result})
        page.text(f"Hours of training per run, of all devices together, on {', '.join(hardware)}.")
        tested = {views: {_label(g[0]): s for g in groups for s in _scores(g, views).values()} for views in spec.views}
        page.text("Views: " + "; ".join(protocol_lines({views: one for views, one in tested.items() if one})) + ".")
        page.figure(error_dots(lines, "top-1 error"), f"top-1 error of {', '.join(line.label for line in lines)}")
    present = {group[0].variant for group in groups}
    todo += [
        _to_train(first, variant, spec, runs)
        for variant in VARIANTS
        if variant not in present and variant in spec.variants and _belongs(first, variant)
    ]
    if todo:
        page.text("Not run yet:")
        page.table(["network", "views", "command", "estimate"], todo)


def _views_for(spec: TableSpec, group: list[Run]) -> list[tuple[str, str | None]]:
    """The protocols to show for a network: those the paper names, and others where they were run."""
    return [
        (views, first_views)
        for views, first_views in spec.views.items()
        if any(views in run.scores for run in group)
        or (views in NAMED_BY_PAPER and (group[0].variant != "none" or views in ("center", "ten_crop")))
    ]


def _scores(group: Sequence[Run], views: str) -> dict[int, Scores]:
    """By seed."""
    return {run.config["seed"]: run.scores[views] for run in group if views in run.scores}


def _paper_errors(spec: TableSpec, run: Run, variant: str, views: str) -> tuple[PaperErrors | None, PaperErrors | None]:
    """What the paper prints for these views, and what it counts the gain from."""
    if not run.on_imagenet:
        return None, None
    numbers, without = (PAPER.get((run.architecture, name), {}) for name in (variant, "none"))
    if spec.gain_over_no_spp:
        return numbers.get(views), without.get(views) if variant != "none" else None
    return numbers.get(views), numbers.get(spec.views[views] or "")


def _label(run: Run) -> str:
    usual = {"alternate": [224, 180], "random": ["random", 180, 224]}.get(run.variant or "", [224])
    sizes = "" if run.sizes == usual else f" ({'/'.join(map(str, run.sizes))})"
    return VARIANTS[run.variant or ""] + sizes


def _headers(on_imagenet: bool) -> list[str]:
    errors = []
    for k in ("top-1", "top-5"):
        errors += [f"{k}, paper", f"{k}, ours", "gain, paper", "gain, ours"] if on_imagenet else [f"{k} error", "gain"]
    return ["network", "views", "images", "seeds", *errors, "McNemar p, top-1", "hours"]


def _columns(
    ours: dict[int, Scores],
    reference: dict[int, Scores],
    paper: PaperErrors | None,
    paper_reference: PaperErrors | None,
    on_imagenet: bool,
) -> list[str]:
    """Images, seeds, errors and gains, and p of every seed that both have."""
    one = next(iter(ours.values()))
    for other in (*ours.values(), *reference.values()):
        check_same_images(one, other)
    cells = [f"{len(one.labels):,}", f"{len(ours)}"]
    for index, k in enumerate((1, 5)):
        mistakes = [wrong(scores, k) for scores in ours.values()]
        gain = _gain([wrong(scores, k) for scores in reference.values()], mistakes) if reference else ""
        if on_imagenet:
            value, base = (paper or (None, None))[index], (paper_reference or (None, None))[index]
            paper_gain = f"{base - value:+.2f}" if value is not None and base is not None else ""
            cells += [_number(value), _mean_text(mistakes), paper_gain, gain]
        else:
            cells += [_mean_text(mistakes), gain]
    tests = [paired_test(wrong(reference[seed]), wrong(ours[seed])) for seed in ours if seed in reference]
    return [*cells, ", ".join(p_text(test.p) for test in tests)]


def _gain(reference: list[np.ndarray], ours: list[np.ndarray]) -> str:
    value = float(np.mean(reference) - np.mean(ours))
    return signed(value, *gain_interval(np.stack(reference), np.stack(ours)))


def _mean_text(mistakes: list[np.ndarray]) -> str:
    errors = [float(one.mean()) for one in mistakes]
    if len(errors) == 1:
        return error_text(mistakes[0])
    return f"{percent(statistics.mean(errors))} ± {percent(statistics.stdev(errors))}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _next_command(run: Run, views: str) -> str:
    if run.result is None:
        return f"not finished: give the command again that trains `{run.path}`"
    return f"`python scripts/evaluate.py run={run.path} views=[{views}]`"


def _belongs(run: Run, variant: str) -> bool:
    """Whether a table of this network should have this variant."""
    return (run.architecture, variant) in PAPER if run.on_imagenet else variant in ("none", "single", "alternate")


def _to_train(sibling: Run, variant: str, spec: TableSpec, runs: Sequence[Run]) -> list[str]:
    """What is missing beside a run of the same network, data and recipe."""
    views = ", ".join(views for views in spec.views if variant != "none" or views in ("center", "ten_crop"))
    if sibling.on_imagenet:
        return [
            VARIANTS[variant],
            views,
            _train_command(sibling.architecture, variant),
            _paper_estimate(sibling.architecture, variant, runs),
        ]
    choices = {
        "none": "pooling=none sizes=single",
        "single": "pooling=spp50 sizes=single",
        "alternate": "pooling=spp50 sizes=alternate",
    }
    config = {
        **sibling.config,
        "pooling": {"levels": PAPER_LEVELS.get(variant, [6, 3, 2, 1])},
        "sizes": {"cycle": PAPER_SIZES.get(variant, [224])},
    }
    time = ""
    if sibling.result is not None:
        with naming_config(sibling):
            work = training_work(config, sibling.result["num_classes"], sibling.result["training_images"])
        time = estimate(work, runs)
    return [VARIANTS[variant], views, f"as `{sibling.path}`, with `{choices[variant]}`", time]


def _train_command(architecture: str, variant: str) -> str:
    return f"`python scripts/train.py experiment={experiment_of(architecture, variant)} data.root=PATH`"


def _paper_estimate(architecture: str, variant: str, runs: Sequence[Run]) -> str:
    normalization = "within_channel" if architecture == "zf5" else "across_channels"
    config = {
        "backbone": {"architecture": architecture, "width": 1.0, "normalization": normalization},
        "pooling": {"levels": PAPER_LEVELS.get(variant, [6, 3, 2, 1])},
        "sizes": {"cycle": PAPER_SIZES.get(variant, [224])},
        "hidden": 4096,
        "recipe": {"epochs": PAPER_EPOCHS[architecture]},
    }
    return estimate(training_work(config, IMAGENET_CLASSES, ILSVRC_2012[0]), runs)
