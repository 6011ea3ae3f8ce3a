"""Trains detectors on the feature maps of a classifier and tests them, or uses one: `sppnet detect --help`."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.detect_photos import check_photos, detect_photos
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.naming import content_hash
from sppnet.commands.photos import check_photos_exist
from sppnet.commands.settings import bound, bound_choice, named_keys, plain, resolved
from sppnet.results.page import markdown_table
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.published import check_local
from sppnet.runtime.rules import SEED
from sppnet.runtime.run_directory import without_folders

if TYPE_CHECKING:
    from sppnet.data.objects import AnnotatedImages, DetectionSplits
    from sppnet.detect.pipeline import DetectionPlan
    from sppnet.results.detections import Detections

# The settings that change the outcome of a run, and so the name of its directory.
_OUTCOME = (
    "data",
    "proposals",
    "rows",
    "scales",
    "scale_rule",
    "cell_rule",
    "context",
    "aligned",
    "use_difficult",
    "tune_fraction",
    "most_windows",
    "seed",
    "exclude",
    "finetune",
    "svm",
    "regression",
    "test",
)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="detect")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    resumes = config.get("images") is None or config.get("out") is not None
    with one_line_job("the same command resumes" if resumes else "no file was written"):
        detect(resolved(config))


def settings(
    *,
    network: str | None,
    rows: list[str],
    scales: list[int],
    scale_rule: str,
    cell_rule: str,
    context: float,
    aligned: bool,
    use_difficult: bool,
    tune_fraction: float,
    most_windows: int,
    seed: int,
    name: str | None,
    run: str | None,
    runs: str,
    cache: str,
    exclude: list[str],
    images: Any,
    row: str | None,
    score: float | None,
    out: str | None,
    page: str | None,
    data: dict[str, Any] | None = None,
    proposals: dict[str, Any],
    finetune: dict[str, Any],
    svm: dict[str, Any],
    regression: dict[str, Any],
    test: dict[str, Any],
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/detect.yaml; sections are checked against the functions that take them."""


def check(config: DictConfig) -> None:
    """Raises ValueError for a resolved configuration that cannot be run. Opens no data and loads no network."""
    from sppnet.data.sources import DETECTION_SOURCES  # torch takes seconds, and --help should not

    config = OmegaConf.create(bound(config, settings))
    if config.images is not None:
        check_photos(config)
        return
    if needless := [key for key in ("row", "score", "out", "page") if config[key] is not None]:
        raise ValueError(f"{needless[0]}={config[needless[0]]}: is for images=PLACE, which uses a trained detector")
    if config.network is None:
        raise ValueError(
            "network: missing; give network=RUN, the run directory or a checkpoint of a trained classifier"
        )
    check_local("network", config.network)
    if config.get("data") is None:
        raise ValueError("data: missing; give it as data=scenes, data=voc data.root=PATH or data=coco ...")
    bound_choice(config.data, "source", DETECTION_SOURCES, "data.")
    read_plan(config)
    _run_directory(config, "")


def read_plan(config: DictConfig) -> "DetectionPlan":
    """Returns the plan that a resolved configuration asks for. Raises ValueError for values out of range."""
    from sppnet.detect.finetuning_windows import FinetuneSettings
    from sppnet.detect.maps import WindowRules
    from sppnet.detect.mining import SvmSettings
    from sppnet.detect.pipeline import DetectionPlan, Row
    from sppnet.detect.suppression import SuppressionSettings
    from sppnet.detect.training import RegressionSettings
    from sppnet.runtime.hardware import Hardware

    if not config.rows or len(set(config.rows)) < len(config.rows):
        raise ValueError(f"rows={config.rows}: must name one or more detectors, each once, as in rows=[fc7,ftfc7_bb]")
    if not SEED.holds(config.seed):
        raise ValueError(f"seed={config.seed}: must be {SEED.words.removeprefix('a whole number ')}")
    if not 0 < config.tune_fraction < 1:
        raise ValueError(f"tune_fraction={config.tune_fraction}: must be above 0 and below 1")
    if not 1 <= config.most_windows <= 1_000_000:
        raise ValueError(f"most_windows={config.most_windows}: must be from 1 to 1,000,000")
    proposer, options = read_proposer(config.proposals)
    return DetectionPlan(
        rows=tuple(map(Row.parse, config.rows)),
        rules=WindowRules(
            scales=tuple(config.scales),
            scale_rule=config.scale_rule,
            cell_rule=config.cell_rule,
            context=config.context,
        ),
        proposer=proposer(**options),
        most_windows=config.most_windows,
        finetune=FinetuneSettings(**bound(config.finetune, FinetuneSettings, "finetune.")),
        svm=SvmSettings(**bound(config.svm, SvmSettings, "svm.")),
        regression=RegressionSettings(**bound(config.regression, RegressionSettings, "regression.")),
        test=SuppressionSettings(**bound(config.test, SuppressionSettings, "test.")),
        aligned=config.aligned,
        use_difficult=config.use_difficult,
        tune_fraction=config.tune_fraction,
        seed=config.seed,
        hardware=Hardware(**bound(config.hardware, Hardware, "hardware.")),
    )


def read_proposer(section: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the proposer that a section names, and its arguments."""
    from sppnet.detect.proposals import Dense, EdgeBoxes, SelectiveSearch
    from sppnet.detect.window_files import WindowFile

    choices: dict[str, Callable[..., Any]] = {
        "dense": Dense,
        "selective_search": SelectiveSearch,
        "edge_boxes": EdgeBoxes,
        "file": WindowFile,
    }
    choice, options = bound_choice(section, "proposer", choices, "proposals.")
    return choices[choice], options


def _run_directory(config: DictConfig, network: str) -> Path:
    """Returns the run directory: a function of the settings, and of the digest of the network."""
    name = str(config.name or f"detect-{config.data.source}")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name={name}: may hold letters, digits, dots, dashes and underscores only")
    outcome = {**plain(OmegaConf.masked_copy(config, list(_OUTCOME))), "network": network}
    digest = content_hash({**outcome, "data": without_folders(outcome["data"])})
    return Path(config.run or Path(config.runs) / f"{name}-seed{config.seed}-{digest}")


def detect(config: DictConfig) -> None:
    """Trains and tests the detectors that a resolved configuration describes, and prints their results; or uses one."""
    check_photos_exist(config.get("images"))
    check(config)
    config = OmegaConf.create(bound(config, settings))
    if config.images is not None:
        detect_photos(config)
        return
    plan = read_plan(config)

    from sppnet.commands.frozen_networks import load_run
    from sppnet.detect.pipeline import train_and_test
    from sppnet.network import weights_digest
    from sppnet.results.detection_cells import recall_text

    loaded = load_run(Path(config.network))
    section, splits = _open_data(config)
    run = _run_directory(config, weights_digest(loaded.network))
    print(f"{loaded.record['text']}\nrun directory {run}", flush=True)
    about = {
        "data": section,
        "data_text": _data_text(section),
        "exclude": sorted(config.exclude),
        "network": loaded.record,
        "scales": list(config.scales),
        "proposals": plain(config.proposals) | {"most_windows": config.most_windows},
    }
    found = train_and_test(loaded.network, splits, plan, run, Path(config.cache), about=about)
    if recalls := found[0].about["recall"]:
        print(f"proposals: {recall_text(recalls)}")
    print(markdown_table(*_summary(found, splits.test)))
    print(f"a page of it: {shown_command('tables')} detection runs={run}")


def _open_data(config: DictConfig) -> tuple[dict[str, Any], "DetectionSplits"]:
    """Opens the data. Returns its section with an absolute root, and the splits."""
    from sppnet.data.objects import exclude_images
    from sppnet.data.sources import DETECTION_SOURCES

    source, options = bound_choice(config.data, "source", DETECTION_SOURCES, "data.")
    if options.get("root"):
        options["root"] = os.path.abspath(options["root"])
    with named_keys(data=DETECTION_SOURCES[source]):
        splits = DETECTION_SOURCES[source](**options)
    if config.exclude:
        splits = exclude_images(splits, config.exclude)
    print(
        f"{source}: {len(splits.train):,} training and {len(splits.test):,} test images of "
        f"{len(splits.train.classes)} classes"
    )
    return {"source": source, **options}, splits


def _data_text(section: dict[str, Any]) -> str:
    """Names the data in tables: "scenes", or with the last part of its root, "voc VOC2007"."""
    source, name = section["source"], Path(section.get("root") or "").name
    return source if source == "scenes" or not name else f"{source} {name}"


def _summary(found: "list[Detections]", images: "AnnotatedImages") -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table of mean average precisions."""
    from sppnet.results.precisions import match_detections, mean_precision, precision_interval

    rows = []
    for detections in found:
        matches = match_detections(detections, images)
        low, high = precision_interval(matches)
        eleven, every = (f"{100 * mean_precision(matches, points):.2f}" for points in (11, None))
        rows.append([detections.about["row"], eleven, f"{100 * low:.2f} to {100 * high:.2f}", every])
    return ["detector", "mAP in %, 11 points", "95 % interval, over images", "all points"], rows


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
