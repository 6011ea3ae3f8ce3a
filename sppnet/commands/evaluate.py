"""Tests trained networks by the paper's protocols: python scripts/evaluate.py --help."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.classify.schedules import Sizes
from sppnet.commands.errors import CONFIGS
from sppnet.commands.settings import bound, bound_choice, content_hash, one_line_job, plain, resolved, run_main


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="evaluate")
def main(config: DictConfig) -> None:
    with one_line_job("the same command resumes with the images that are left"):
        evaluate(resolved(config))


def check(config: DictConfig) -> None:
    """Raises what is wrong with a resolved configuration. Opens no data."""
    from sppnet.classify.hardware import Hardware

    bound(config, settings)
    Hardware(**bound(config.hardware, Hardware, "hardware."))
    for path in find_runs(config.run):
        read_tested_run(config, path)


def settings(
    *,
    run: Any,
    views: dict[str, Any],
    scales: list[int] | None,
    crop_side: int | None,
    data: dict[str, Any] | None,
    part: str,
    exclude: list[str],
    scores: str | None,
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/evaluate.yaml; `evaluate` checks the sections against what they are given to."""


class TestedRun(NamedTuple):
    """A run directory or a checkpoint, and what of its training decides how it is tested."""

    path: Path
    config: dict[str, Any] | None  # None for a checkpoint
    result: Any  # a Result; None for a checkpoint, and before training is finished
    crop_side: int
    protocols: dict[str, Any]  # title -> ViewProtocol in pixels
    shipped: set[str]  # titles of those that are as configs/views has them


def evaluate(config: DictConfig) -> None:
    bound(config, settings)
    paths = find_runs(config.run)
    if config.scores and len(paths) > 1:
        raise ValueError(f"scores={config.scores}: is for one run, and run={config.run} names {len(paths)}")
    # Imported here because torch takes seconds, and --help should not.
    from sppnet.classify.hardware import Hardware
    from sppnet.results.comparisons import comparisons_table, errors_table, protocol_lines
    from sppnet.results.page import markdown_table
    from sppnet.results.scores import Scores

    hardware = Hardware(**bound(config.hardware, Hardware, "hardware."))
    runs = [read_tested_run(config, path) for path in paths]
    tested: dict[str, dict[str, Scores]] = {}
    opened: dict[str, TestData] = {}
    for run in runs:
        for title, scores in score_run(config, run, hardware, opened):
            tested.setdefault(title, {})[str(run.path)] = scores
    if not tested:
        raise ValueError(f"views={list(config.views)}: none of them suits the networks")
    print("\n".join(protocol_lines(tested)) + "\n")
    print(markdown_table(*errors_table(tested)))
    if len(runs) > 1:
        print(markdown_table(*comparisons_table(tested)))


def read_tested_run(config: DictConfig, path: Path) -> TestedRun:
    """Reads the records of a run and checks the protocols for it; loads no network."""
    from sppnet.classify.views import LARGEST_SCALE
    from sppnet.geometry import CROP_SIDE
    from sppnet.results.records import read_result
    from sppnet.runtime.run_directory import read_run_config

    trained = read_run_config(path)
    result = read_result(path) if path.is_dir() else None
    side = CROP_SIDE
    if trained is not None:
        side = Sizes(cycle=trained["sizes"].get("cycle"), uniform=trained["sizes"].get("uniform")).largest
    if config.crop_side is not None and not 1 <= config.crop_side <= LARGEST_SCALE:
        raise ValueError(f"crop_side={config.crop_side}: must be from 1 to {LARGEST_SCALE}")
    if config.crop_side is None and path.is_file():
        print(f"{path}: no config.yaml names its crop side; views are for crops of {side}, or give crop_side=PIXELS")
    protocols, shipped = read_protocols(config, side)
    return TestedRun(path, trained, result, config.crop_side or side, protocols, shipped)


class TestData(NamedTuple):
    """A data set, and the contents of the images that are tested."""

    section: dict[str, Any]  # as a run's config.yaml has it
    data: Any  # ImageData
    digests: Any  # uint8 (n, 16)


def score_run(
    config: DictConfig, run: TestedRun, hardware: Any, opened: dict[str, TestData]
) -> Iterator[tuple[str, Any]]:
    """Tests a run by its protocols: (title, Scores). `opened` keeps data for the next run."""
    from sppnet.classify.evaluator import evaluate_to_file
    from sppnet.data.sources import images_fingerprint, select_images
    from sppnet.network import load_network
    from sppnet.results.scores import is_of_validation_images
    from sppnet.runtime.run_directory import checkpoint_digest

    network = load_network(run.path)
    test = open_test_data(config, run, opened)
    images = select_images(test.data, config.part, config.exclude, network.classes)
    source = test.section["source"]
    print(f"{run.path}: {network.summary()}; {len(images):,} images of {source} ({config.part})", flush=True)

    what = {
        "data": test.section,
        "part": config.part,
        "exclude": sorted(config.exclude),
        "images": images_fingerprint(images, test.digests),
    }
    own = run.config is not None and is_of_validation_images(what, run.config, run.result)
    place = "" if own else data_text(config)
    if run.path.is_dir() and run.result is None:
        print(f"{run.path}: has not finished training; this tests its last checkpoint, and tables will skip it")
    elif run.path.is_dir() and not own and not place:
        print(f"{run.path}: its validation images have changed since training; tables will skip these scores")

    about = {**what, "run": str(run.path), "network": network.summary(), "classes": list(images.classes)}
    checkpoint = checkpoint_digest(run.path)
    for title, protocol in run.protocols.items():
        if unsuited := protocol.unsuited_to(network):
            print(f"{title}: skipped, as a network without a pyramid cannot be tested on {unsuited}")
            continue
        digest = content_hash({"protocol": vars(protocol), "images": what["images"]})
        name = title if own and title in run.shipped else f"{title.split()[0]}-{digest}"
        scores = evaluate_to_file(
            scores_folder(config.scores, run.path) / f"{name}.npz",
            network,
            images,
            test.digests,
            protocol,
            hardware,
            title=title + place,
            checkpoint=checkpoint,
            about={**about, "views": title},
        )
        yield title, scores


def open_test_data(config: DictConfig, run: TestedRun, opened: dict[str, TestData]) -> TestData:
    """Opens the data and hashes the images to test, unless an earlier run was tested on the same."""
    from sppnet.data.folders import unsplit_folder
    from sppnet.data.sources import DATA_SOURCES, ImageData, content_digests, open_data, select_images

    section = data_section(config.data, run)
    source, options = bound_choice(OmegaConf.create(section), "source", DATA_SOURCES, "data.")
    key = str(section)
    if key in opened:
        return opened[key]
    if source == "folder" and config.part == "all" and not has_parts(Path(options["root"])):
        everything, nothing = unsplit_folder(root=options["root"])
        data = ImageData(everything, nothing, everything.classes)
    else:
        data = open_data(source, **options)
    refuse_split(config, section, run, data)
    images = select_images(data, config.part, config.exclude)
    opened[key] = TestData(section, data, content_digests(images, "reading the images"))
    return opened[key]


def has_parts(root: Path) -> bool:
    """Whether a folder has train/, val/, validation/ or test/, rather than class folders."""
    from sppnet.data.folders import val_folders

    return bool(val_folders(root)) or (root / "train").is_dir()


def refuse_split(config: DictConfig, section: dict[str, Any], run: TestedRun, data: Any) -> None:
    """Raises ValueError where a share of a folder would be tested that was not the run's validation data.

    A share that was asked for by data.val_fraction is fine.
    """
    from sppnet.data.folders import val_folders

    split = section["source"] == "folder" and config.part != "all" and not val_folders(Path(section["root"]))
    asked = config.data is not None and config.data.get("val_fraction") is not None
    as_trained = run.config is not None and section == run.config["data"]
    same_data = run.result is not None and data.fingerprint() == run.result.data_fingerprint
    if split and not (asked or as_trained or same_data):
        raise ValueError(
            f"data.root={section['root']}: has no val/ part; give part=all to test on all of it, or "
            "data.val_fraction=0.2 to test on a fifth"
        )


def find_runs(run: Any) -> list[Path]:
    """The run directories and checkpoints that `run` names: a path, a pattern, or a list of them."""
    patterns = [run] if isinstance(run, str) else run
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(one, str) and one for one in patterns):
        given = "null" if run is None else run
        raise ValueError(f"run={given}: must be a run directory, a checkpoint, a pattern, or a list of them: run=[A,B]")
    found = []
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not paths:
            raise ValueError(f"run={pattern}: no such run directory or checkpoint")
        found += [Path(path) for path in paths]
    return list(dict.fromkeys(found))


def read_protocols(config: DictConfig, trained_side: int) -> tuple[dict[str, Any], set[str]]:
    """The protocols by title, each at its own scales or once at every one of `config.scales`; which are as shipped.

    A title is the protocol's name and what differs from configs/views. Multiples such as "256/224" become pixels for
    crops of `config.crop_side`, or of `trained_side`.
    """
    from sppnet.classify.views import LARGEST_SCALE, ViewProtocol, in_pixels

    if config.scales is not None and not config.scales:
        raise ValueError("scales=[]: must name at least one shorter side, as in scales=[224,256]; null: those of views")
    if any(not 1 <= scale <= LARGEST_SCALE for scale in config.scales or []):
        raise ValueError(f"scales={config.scales}: must be from 1 to {LARGEST_SCALE} pixels")
    side = config.crop_side or trained_side
    protocols, shipped = {}, set()
    for name, section in config.views.items():
        given = plain(section) if isinstance(section, DictConfig) else section
        pixels = OmegaConf.create(in_pixels(given, side)) if isinstance(given, dict) else given
        protocol = ViewProtocol(**bound(pixels, ViewProtocol, f"views.{name}."))
        changes = changed_settings(name, given) + ([f"crop_side={side}"] if side != trained_side else [])
        suffix = " with " + " ".join(changes) if changes else ""
        if config.scales is None:
            protocols[name + suffix] = protocol
            if not changes:
                shipped.add(name)
            continue
        for scale in config.scales:
            if (at_scale := protocol.at(scale)) is None:
                print(f"{name} at {scale}: skipped, as its windows are {protocol.view_size} pixels wide")
            else:
                protocols[f"{name}-{scale}{suffix}"] = at_scale
    return protocols, shipped


def changed_settings(name: str, section: dict[str, Any]) -> list[str]:
    """What of a protocol differs from the one that configs/views has under this name, as KEY=VALUE."""
    file = CONFIGS / "views" / f"{name}.yaml"
    shipped = plain(OmegaConf.load(file)) if file.is_file() else {}  # type: ignore[arg-type]
    changed = {key: value for key, value in section.items() if value != shipped.get(key)}
    return [f"{key}={value}".replace(" ", "") for key, value in changed.items()]


def data_section(given: DictConfig | None, run: TestedRun) -> dict[str, Any]:
    """The data to test on: the one given, or that of the run with the keys given changed. Roots become absolute."""
    section = {key: value for key, value in plain(given).items() if value is not None} if given else {}
    if isinstance(section.get("root"), str) and "://" not in section["root"]:
        section["root"] = os.path.abspath(section["root"])
    if "source" in section:
        return section
    if run.config is None:
        raise ValueError(f"{run.path}: has no config.yaml that names its data; give data=GROUP and its keys")
    return {**run.config["data"], **section}


def data_text(config: DictConfig) -> str:
    """What of the data, the part and the exclusions was given, in the words of the command line, without defaults."""
    given = {key: value for key, value in plain(config.data).items() if value is not None} if config.data else {}
    source, usual = given.pop("source", None), {}
    if source is not None:
        usual = plain(OmegaConf.load(CONFIGS / "data" / f"{source}.yaml"))  # type: ignore[arg-type]
    words = [f"data={source}"] if source is not None else []
    words += [f"data.{key}={value}" for key, value in given.items() if value != usual.get(key)]
    if config.part != "val":
        words.append(f"part={config.part}")
    if config.exclude:
        words.append(f"exclude=[{','.join(config.exclude[:3])}{',...' if len(config.exclude) > 3 else ''}]")
    return " on " + " ".join(words) if words else ""


def scores_folder(given: str | None, run: Path) -> Path:
    if given is not None:
        return Path(given)
    return run / "scores" if run.is_dir() else run.with_name(f"{run.name}.scores")


def command() -> None:
    run_main(main)
