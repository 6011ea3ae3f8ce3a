"""Tests trained networks by the paper's protocols: python scripts/evaluate.py --help."""

if __name__ == "__main__":  # before the imports below, which take a second
    from startup import prepare_process

    prepare_process()

import glob
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from command_line import (
    bound,
    bound_choice,
    content_hash,
    one_line_job,
    plain,
    resolved,
    run_main,
)
from errors import CONFIGS


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def main(config: DictConfig) -> None:
    with one_line_job("the same command goes on with the images that are left"):
        evaluate(resolved(config))


def check(config: DictConfig) -> None:
    """Raises what is wrong with a resolved configuration. Opens no data."""
    from sppnet.classify.evaluator import Hardware

    bound(config, settings)
    find_runs(config.run)
    Hardware(**bound(config.hardware, Hardware, "hardware."))
    read_protocols(config)


def settings(
    *,
    run: Any,
    views: dict[str, Any],
    scales: list[int] | None,
    data: dict[str, Any] | None,
    part: str,
    exclude: list[str],
    scores: str | None,
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/evaluate.yaml; `evaluate` checks the sections against what they are given to."""


def evaluate(config: DictConfig) -> None:
    bound(config, settings)
    runs = find_runs(config.run)
    if config.scores and len(runs) > 1:
        raise ValueError(f"scores={config.scores}: is for one run, and run={config.run} names {len(runs)}")
    # Imported here because torch takes seconds, and --help should not.
    from sppnet.classify.evaluator import Hardware, evaluate_to_file
    from sppnet.datasets import DATA_SOURCES, ImageData, open_data, select_images
    from sppnet.network import load_network
    from sppnet.records import Scores, checkpoint_digest, read_result, read_run_config, without_folders
    from sppnet.results.comparisons import comparisons_table, errors_table
    from sppnet.results.page import markdown_table

    hardware = Hardware(**bound(config.hardware, Hardware, "hardware."))
    protocols = read_protocols(config)
    tested: dict[str, dict[str, Scores]] = {}
    opened: dict[str, ImageData] = {}
    for run in runs:
        network = load_network(run)
        trained_on = (read_run_config(run) or {}).get("data")
        section = data_section(config.data, trained_on, run)
        source, options = bound_choice(OmegaConf.create(section), "source", DATA_SOURCES, "data.")
        if str(section) not in opened:
            opened[str(section)] = open_data(source, **options)
        images = select_images(opened[str(section)], config.part, config.exclude, network.classes)
        print(f"{run}: {network.summary()}; {len(images):,} images of {source} ({config.part})", flush=True)
        if run.is_dir() and read_result(run) is None:
            print(f"{run}: has not finished training; this tests its last checkpoint, and tables will leave it out")
        what = {"data": without_folders(section), "part": config.part, "exclude": sorted(config.exclude)}
        usual = trained_on is not None and what == {"data": without_folders(trained_on), "part": "val", "exclude": []}
        for name, protocol in protocols.items():
            if network.levels is None and protocol.needs_pyramid:
                print(f"{name}: left out, as a network without a pyramid cannot be tested on {protocol.needs_pyramid}")
                continue
            own = usual and is_shipped(name, protocol)
            label = name if own else f"{name}-{content_hash({'protocol': vars(protocol), **what})}"
            tested.setdefault(name, {})[str(run)] = evaluate_to_file(
                scores_folder(config.scores, run) / f"{label}.npz",
                network,
                images,
                protocol,
                hardware,
                identity={"protocol": vars(protocol), **what, "checkpoint": checkpoint_digest(run)},
                about={"views": label, "run": str(run), "network": network.summary(), "classes": list(images.classes)},
            )
    if not tested:
        raise ValueError(f"views={list(config.views)}: none of them suits the networks")
    print(markdown_table(*errors_table(tested)))
    if len(runs) > 1:
        print(markdown_table(*comparisons_table(tested)))


def read_protocols(config: DictConfig) -> dict[str, Any]:
    """The protocols by name, each at its own scales or once at every one of `config.scales`."""
    from sppnet.classify.views import ViewProtocol

    protocols = {}
    for name, section in config.views.items():
        protocol = ViewProtocol(**bound(section, ViewProtocol, f"views.{name}."))
        if config.scales is None:
            protocols[name] = protocol
            continue
        for scale in config.scales:
            if (at_scale := protocol.at(scale)) is None:
                print(f"{name} at {scale}: left out, as its windows are {protocol.view_size} pixels wide")
            else:
                protocols[f"{name}-{scale}"] = at_scale
    return protocols


def find_runs(run: Any) -> list[Path]:
    """The run directories and checkpoints that `run` names: a path, a pattern, or a list of them."""
    found = []
    for pattern in [run] if isinstance(run, str) else run:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not paths:
            raise ValueError(f"run={pattern}: no such run directory or checkpoint")
        found += [Path(path) for path in paths]
    return list(dict.fromkeys(found))


def data_section(given: DictConfig | None, trained_on: dict[str, Any] | None, run: Path) -> dict[str, Any]:
    """What to test on: the data given, or what the run was trained on with the keys given changed."""
    section = {key: value for key, value in plain(given).items() if value is not None} if given else {}
    if "source" in section:
        return section
    if trained_on is None:
        raise ValueError(f"{run}: has no config.yaml that names its data; give data=GROUP and its keys")
    return {**trained_on, **section}


def is_shipped(name: str, protocol: Any) -> bool:
    """Whether a protocol is the one that configs/views has under this name."""
    file = CONFIGS / "views" / f"{name}.yaml"
    return file.is_file() and type(protocol)(**plain(OmegaConf.load(file))) == protocol  # type: ignore[arg-type]


def scores_folder(given: str | None, run: Path) -> Path:
    if given is not None:
        return Path(given)
    return run / "scores" if run.is_dir() else run.with_name(f"{run.name}.scores")


if __name__ == "__main__":
    run_main(main)
