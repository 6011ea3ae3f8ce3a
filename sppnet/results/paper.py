"""The paper's classification tables beside our runs: from records and saved scores alone."""

import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppnet.data.folders import ILSVRC_2012
from sppnet.results.comparisons import (
    check_same_images,
    error_text,
    p_text,
    percent,
    protocol_lines,
    signed,
    wrong,
)
from sppnet.results.costs import estimate, training_hours, training_work
from sppnet.results.page import Page
from sppnet.results.plots import Errors, error_dots
from sppnet.results.records import Scores
from sppnet.results.runs import VARIANTS, Run, grouped, naming_config
from sppnet.results.statistics import gain_interval, paired_test

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


# What the interval of a gain covers: with two or more runs on both sides, and with fewer.
OVER_BOTH, OVER_IMAGES = "over images and training runs", "over images only"


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
        "Errors in % on the validation images after training. One run: with its 95 % interval over images only "
        "(Wilson). Several: mean ± standard deviation over seeds. Gain: how much lower the error is than "
        + ("without a pyramid" if spec.gain_over_no_spp else "in the first of these views, for runs tested by both")
        + f", with its 95 % interval {OVER_BOTH}; {OVER_IMAGES} where a side has one run. McNemar's exact p, over "
        "images only, for every seed of both."
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
                    _code("python", "scripts/train.py", f"experiment={experiment_of(a, v)}", _imagenet_root(runs)),
                    _paper_estimate(a, v, runs),
                ]
                for a, v, views in missing
            ],
        )
    return page


def _imagenet_root(runs: Sequence[Run]) -> str:
    """Where ImageNet is, as far as the runs know."""
    roots = [run.config["data"].get("root") for run in runs if run.on_imagenet]
    return f"data.root={hydra_value(roots[0])}" if roots else "data.root=PATH"


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
    _add_errors(page, spec, groups)
    todo = [line for group in groups for line in _to_finish(spec, group)]
    present = {group[0].variant for group in groups}
    todo += [
        _to_train(block, variant, spec, runs)
        for variant in VARIANTS
        if variant not in present and variant in spec.variants and _belongs(first, variant)
    ]
    if todo:
        page.text("Not run yet, with the command that does it:")
    for line in todo:
        page.text(line)


def _add_errors(page: Page, spec: TableSpec, groups: list[list[Run]]) -> None:
    """The table and the plot of what was tested, if anything was. `groups`: the seeds of every network."""
    on_imagenet = groups[0][0].on_imagenet
    rows, lines, images_only = [], [], []
    for group in groups:
        label = _label(group[0])
        for views, first_views in _views_for(spec, group):
            ours = _scores(group, views)
            if not ours:
                continue
            reference = _reference(spec, groups, group, views, first_views)
            papers = _paper_errors(spec, group[0], group[0].variant or "", views)
            columns = _columns(ours, reference, *papers, on_imagenet, same_runs=not spec.gain_over_no_spp)
            rows.append([label, views, *columns, training_hours(group)])
            if reference and min(len(ours), len(reference)) == 1:
                images_only.append(f"{label} by {views}")
            errors = [100 * float(wrong(scores).mean()) for scores in ours.values()]
            lines.append(Errors(f"{label}, {views}", errors, papers[0][0] if papers[0] else None))
    if not rows:
        return
    page.table(_headers(on_imagenet), rows)
    if images_only:
        page.text(f"Gains with intervals {OVER_IMAGES}, because a side has one run: {'; '.join(images_only)}.")
    hardware = sorted({run.result.hardware for group in groups for run in group if run.result})
    page.text(f"Hours of training per run, of all devices together, on {', '.join(hardware)}.")
    tested = {views: {_label(g[0]): s for g in groups for s in _scores(g, views).values()} for views in spec.views}
    page.text("Views: " + "; ".join(protocol_lines({views: one for views, one in tested.items() if one})) + ".")
    page.figure(error_dots(lines, "top-1 error"), f"top-1 error of {', '.join(line.label for line in lines)}")


def _reference(
    spec: TableSpec, groups: list[list[Run]], group: list[Run], views: str, first_views: str | None
) -> dict[int, Scores]:
    """What the gain of a network's test by `views` is counted from, by seed; empty where the row has no gain."""
    if spec.gain_over_no_spp:
        baseline = next((group for group in groups if group[0].variant == "none"), [])
        return {} if group is baseline else _scores(baseline, views)
    ours, reference = _scores(group, views), _scores(group, first_views) if first_views else {}
    return {seed: scores for seed, scores in reference.items() if seed in ours}


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
    *,
    same_runs: bool,
) -> list[str]:
    """Images, seeds, errors and gains, and p of every seed that both have.

    same_runs: `reference` holds other tests of the same runs, by seed, and of no others.
    """
    one = next(iter(ours.values()))
    for other in (*ours.values(), *reference.values()):
        check_same_images(one, other)
    cells = [f"{len(one.labels):,}", f"{len(ours)}"]
    for index, k in enumerate((1, 5)):
        mistakes = [wrong(scores, k) for scores in ours.values()]
        compared = [wrong(ours[seed], k) for seed in reference] if same_runs else mistakes
        gain = _gain([wrong(scores, k) for scores in reference.values()], compared, same_runs) if reference else ""
        if on_imagenet:
            value, base = (paper or (None, None))[index], (paper_reference or (None, None))[index]
            paper_gain = f"{base - value:+.2f}" if value is not None and base is not None else ""
            cells += [_number(value), _mean_text(mistakes), paper_gain, gain]
        else:
            cells += [_mean_text(mistakes), gain]
    tests = [paired_test(wrong(reference[seed]), wrong(ours[seed])) for seed in ours if seed in reference]
    return [*cells, ", ".join(p_text(test.p) for test in tests)]


def _gain(reference: list[np.ndarray], ours: list[np.ndarray], same_runs: bool) -> str:
    value = float(np.mean(reference) - np.mean(ours))
    return signed(value, *gain_interval(np.stack(reference), np.stack(ours), same_runs=same_runs))


def _mean_text(mistakes: list[np.ndarray]) -> str:
    errors = [float(one.mean()) for one in mistakes]
    if len(errors) == 1:
        return error_text(mistakes[0])
    return f"{percent(statistics.mean(errors))} ± {percent(statistics.stdev(errors))}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _to_finish(spec: TableSpec, group: list[Run]) -> list[str]:
    """What the table still needs of runs that are there: one command per unfinished run, and one per set of tests."""
    label, lines = _label(group[0]), []
    untested: dict[tuple[str, ...], list[Run]] = {}
    for run in group:
        missing = tuple(views for views, _ in _views_for(spec, group) if views not in run.scores)
        if run.result is None:
            words = [f"run={hydra_value(str(run.path))}", *_overrides(run.config), f"seed={run.config['seed']}"]
            command = _code("python", "scripts/train.py", *words)
            lines.append(f"{label}, seed {run.config['seed']}, has not finished training: {command}")
        elif missing:
            untested.setdefault(missing, []).append(run)
    for missing, several in untested.items():
        seeds = ", ".join(str(run.config["seed"]) for run in several)
        paths = [str(run.path) for run in several]
        value = hydra_value(paths[0] if len(paths) == 1 else paths)
        command = _code("python", "scripts/evaluate.py", f"run={value}", f"views={hydra_value(list(missing))}")
        lines.append(f"{label}, seed{'s' if len(several) > 1 else ''} {seeds}, by {', '.join(missing)}: {command}")
    return lines


def _belongs(run: Run, variant: str) -> bool:
    """Whether a table of this network should have this variant."""
    return (run.architecture, variant) in PAPER if run.on_imagenet else variant in ("none", "single", "alternate")


def _to_train(block: list[Run], variant: str, spec: TableSpec, runs: Sequence[Run]) -> str:
    """What is missing beside runs of the same network, data and recipe."""
    sibling = next((run for run in block if run.result is not None), block[0])
    config = _config_of(sibling, variant)
    seeds = sorted({int(run.config["seed"]) for run in block})
    words = [*(["-m"] if len(seeds) > 1 else []), *_name(sibling, variant), *_overrides(config)]
    command = _code("python", "scripts/train.py", *words, f"seed={','.join(map(str, seeds))}")

    views = ", ".join(views for views in spec.views if variant != "none" or views in ("center", "ten_crop"))
    if sibling.on_imagenet:
        time = _paper_estimate(sibling.architecture, variant, runs)
    elif sibling.result is None:
        time = "no finished run to estimate from"
    else:
        with naming_config(sibling):
            work = training_work(config, sibling.result.num_classes, sibling.result.training_images)
        time = estimate(work, runs)
    return f"{VARIANTS[variant]}, by {views} ({time}{', each seed' if len(seeds) > 1 else ''}): {command}"


def _config_of(sibling: Run, variant: str) -> dict[str, Any]:
    """The configuration of a run that differs from `sibling` in pyramid and sizes alone.

    The largest size stays that of `sibling`, and the others are as large beside it as the paper's beside 224.
    """
    largest = max(size for size in sibling.sizes if isinstance(size, int))
    sizes = [round(size * largest / 224) for size in PAPER_SIZES.get(variant, [224])]
    return {
        **sibling.config,
        "pooling": {"levels": PAPER_LEVELS.get(variant, [6, 3, 2, 1])},
        "sizes": {"uniform" if variant == "random" else "cycle": sizes},
    }


def _name(sibling: Run, variant: str) -> list[str]:
    """The name of a run like `sibling`, if that has one that ends in its variant, as those of configs/experiment do."""
    if sibling.on_imagenet:
        return [f"name={experiment_of(sibling.architecture, variant)}"]
    match = re.fullmatch(rf"(.+)_{sibling.variant}-seed\d+-[0-9a-f]+", sibling.path.name)
    return [f"name={hydra_value(f'{match[1]}_{variant}')}"] if match else []


def _overrides(config: dict[str, Any]) -> list[str]:
    """The words after scripts/train.py that give this configuration, seed aside, whatever the defaults are."""
    recipe, sizes = config["recipe"], config["sizes"]
    words = [
        f"backbone={config['backbone']['architecture']}",
        f"data={config['data']['source']}",
        f"recipe={'paper' if recipe.get('warmup_epochs') is None else 'fast'}",
        f"sizes={'random' if 'uniform' in sizes else 'single'}",
    ]
    for section, value in config.items():
        if isinstance(value, dict):
            keys = [key for key in value if key not in ("architecture", "source")]
            words += [f"{section}.{key}={hydra_value(value[key])}" for key in keys]
        elif section != "seed":
            words.append(f"{section}={hydra_value(value)}")
    return words


def hydra_value(value: Any) -> str:
    """A plain value as Hydra reads it back from the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra_value(key)}:{hydra_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    text = str(value)
    plain_text = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII)
    if not isinstance(value, str) or (plain_text and text.lower() not in ("null", "true", "false", "nan", "inf")):
        return text
    # A dollar with a brace is an interpolation for OmegaConf, and a quote ends the text for Hydra. Backslashes count
    # only in front of these.
    text = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)
    text = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), text)
    return f'"{text}"'


def _code(*words: str) -> str:
    """A command that a shell reads as these words, set as code."""
    return f"`{shlex.join(words)}`"


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
