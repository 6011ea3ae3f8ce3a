"""Tests features of a frozen network on other data by linear SVMs: `sppnet transfer --help`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import find_runs
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.naming import content_hash
from sppnet.commands.settings import bound, bound_choice, resolved
from sppnet.results.page import markdown_table
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.rules import SEED
from sppnet.runtime.run_directory import without_folders

if TYPE_CHECKING:
    from sppnet.commands.frozen_networks import LoadedNetwork
    from sppnet.results.scores import Scores
    from sppnet.runtime.hardware import Hardware
    from sppnet.transfer.evaluator import FrozenNetwork, View
    from sppnet.transfer.probe import Svm
    from sppnet.transfer.protocols import TransferData

_BASELINES = ("pixels", "untrained")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="transfer")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    with one_line_job("the same command resumes with the images and splits that are left"):
        transfer(resolved(config))


def settings(
    *,
    run: Any,
    layers: list[str] | None,
    view: str,
    scales: list[int],
    aligned: bool,
    splits: int | None,
    baselines: list[str],
    seed: int,
    exclude: list[str],
    runs: str,
    data: dict[str, Any] | None = None,
    backbone: dict[str, Any] | None = None,
    pooling: dict[str, Any] | None = None,
    paper_epochs: int | None = None,
    svm: dict[str, Any],
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/transfer.yaml; sections are checked against the functions that take them.

    `paper_epochs` is of no use here, but the choices of the group `backbone` set it.
    """


def check(config: DictConfig) -> None:
    """Raises ValueError for a resolved configuration that cannot be run. Opens no data and loads no network."""
    from sppnet.data.sources import DATA_SOURCES, MULTI_LABEL_SOURCES  # torch takes seconds, and --help should not
    from sppnet.runtime.hardware import Hardware
    from sppnet.transfer.probe import Svm
    from sppnet.transfer.protocols import check_splits

    config = _typed(config)
    _check_network(config)
    _check_views(config)
    check_splits(config.splits)
    if unknown := [name for name in config.baselines if name not in _BASELINES]:
        raise ValueError(f"baselines={config.baselines}: {unknown[0]} must be one of {', '.join(_BASELINES)}")
    if config.get("data") is None:
        raise ValueError("data: missing; give it as data=folder data.root=PATH, data=caltech101 or data=voc2007")
    bound_choice(config.data, "source", DATA_SOURCES | MULTI_LABEL_SOURCES, "data.")
    Hardware(**bound(config.hardware, Hardware, "hardware."))
    Svm(**bound(config.svm, Svm, "svm."))


def _typed(config: DictConfig) -> DictConfig:
    """Returns the configuration with values of the types of `settings`: scales=['224'] is [224]."""
    return OmegaConf.create(bound(config, settings))


def _check_network(config: DictConfig) -> None:
    from sppnet.commands.frozen_networks import check_backbone

    has_backbone = config.get("backbone") is not None
    if config.run is None and not has_backbone:
        raise ValueError("run: missing; give run=RUN, a run directory or a checkpoint, or backbone=NAME")
    if config.run is not None and has_backbone:
        raise ValueError(f"run={config.run}: a run has its own network; give run=RUN or backbone=NAME, not both")
    if config.run is not None:
        find_runs(config.run)
    if config.get("pooling") is not None and not has_backbone:
        raise ValueError("pooling: a run has its own pyramid; pooling=NAME is for backbone=NAME")
    if has_backbone:
        check_backbone(config)
    if not SEED.holds(config.seed):
        raise ValueError(f"seed={config.seed}: must be {SEED.words.removeprefix('a whole number ')}")


def _check_views(config: DictConfig) -> None:
    from sppnet.transfer.features import LARGEST_SCALE, VIEWS

    if config.view not in VIEWS:
        raise ValueError(f"view={config.view}: must be one of {', '.join(VIEWS)}")
    if not config.scales or any(not 1 <= scale <= LARGEST_SCALE for scale in config.scales):
        raise ValueError(f"scales={config.scales}: must be one or more sides from 1 to {LARGEST_SCALE} pixels")
    if len(set(config.scales)) < len(config.scales):
        raise ValueError(f"scales={config.scales}: must not repeat a side")
    if config.layers is not None and not config.layers:
        raise ValueError("layers=[]: must name at least one layer, as in layers=[pool5,fc7]")


class _Work(NamedTuple):
    """What every network is tested with."""

    config: DictConfig
    data: "TransferData"
    digests: np.ndarray  # uint8 (n, 16): `content_digests` of the images
    section: dict[str, Any]  # the data, with an absolute root
    svm: "Svm"
    hardware: "Hardware"


def transfer(config: DictConfig) -> None:
    """Tests the features of every network that a resolved configuration names, and prints a table for each."""
    check(config)
    config = _typed(config)

    from sppnet.commands.frozen_networks import build_network, load_run
    from sppnet.runtime.hardware import Hardware
    from sppnet.transfer.probe import Svm

    paths = [] if config.run is None else find_runs(config.run)
    for path in paths[1:]:  # a wrong one should not stop the command after hours
        _layers_and_views(config, load_run(path))
    network = load_run(paths[0]) if paths else build_network(config)
    _layers_and_views(config, network)

    section, data, digests = _open_data(config)
    svm, hardware = Svm(**bound(config.svm, Svm, "svm.")), Hardware(**bound(config.hardware, Hardware, "hardware."))
    work = _Work(config, data, digests, section, svm, hardware)
    _transfer_network(work, network)
    for path in paths[1:]:
        _transfer_network(work, load_run(path))


def _open_data(config: DictConfig) -> tuple[dict[str, Any], "TransferData", np.ndarray]:
    """Opens the data and hashes its images. Returns the section with an absolute root, the data and the digests."""
    from sppnet.data.sources import DATA_SOURCES, MULTI_LABEL_SOURCES, content_digests
    from sppnet.transfer.protocols import open_transfer_data

    source, options = bound_choice(config.data, "source", DATA_SOURCES | MULTI_LABEL_SOURCES, "data.")
    if options.get("root") and "://" not in options["root"]:
        options["root"] = os.path.abspath(options["root"])
    section = {"source": source, **options}
    data = open_transfer_data(source, splits=config.splits, exclude=config.exclude, **options)
    print(f"{_data_text(section)}: {len(data.truth):,} images of {len(data.classes)} classes, {_splits_text(data)}")
    return section, data, content_digests(data.images, "reading the images")


def _layers_and_views(config: DictConfig, loaded: "LoadedNetwork") -> tuple[list[str], list["View"]]:
    """Returns the layers and the views to test. Raises ValueError for any that the network cannot take."""
    from sppnet.commands.frozen_networks import chosen_layers
    from sppnet.transfer.evaluator import View
    from sppnet.transfer.features import check_view

    layers = chosen_layers(loaded, config.layers)
    views = [View(view=config.view, scale=scale, aligned=config.aligned) for scale in config.scales]
    for view in views:
        check_view(loaded.network, layers, view.view, view.scale)
    return layers, views


def _transfer_network(work: _Work, loaded: "LoadedNetwork") -> None:
    """Tests the features of a network and its baselines at every scale, and prints them."""
    from sppnet.results.transfer_page import summary_table

    layers, views = _layers_and_views(work.config, loaded)
    print(f"\n{loaded.folder}: {loaded.record['text']}", flush=True)
    if not loaded.finished:
        print(f"{loaded.folder}: has not finished training; this tests its last checkpoint", flush=True)
    decided: list[Scores] = []
    for view in views:
        decided += _transfer_view(work, loaded, layers, view)
    print()
    print(markdown_table(*summary_table([(scores.about, scores) for scores in decided])))
    print(f"a page of it: {shown_command('tables')} transfer runs={loaded.folder}")


def _transfer_view(work: _Work, loaded: "LoadedNetwork", layers: list[str], view: "View") -> list["Scores"]:
    """Tests the features of a network by one view, then those of its baselines."""
    from sppnet.transfer.evaluator import transfer_to_files

    name = f"{work.section['source']}-{view.view}{view.scale}{'-aligned' if view.aligned else ''}"
    features = loaded.folder / "features" / f"{name}-{content_hash({'data': without_folders(work.section)})}"
    # Decisions on other images or by other settings go to another folder, because tables average those of one folder.
    images = [work.data.fingerprint(indices, work.digests) for indices in work.data.splits[0]]
    settings = {"images": images, "C": work.svm.C, "precision": str(work.hardware.autocast)}
    decisions = loaded.folder / "transfer" / f"{name}-{content_hash(settings)}"

    about = {
        "data": work.section,
        "data_text": _data_text(work.section),
        "exclude": sorted(work.config.exclude),
        "run": str(loaded.folder),
    }
    decided: list[Scores] = []
    for network in _with_baselines(work.config, loaded, layers, features, decisions):
        decided += transfer_to_files(
            network,
            work.data,
            work.digests,
            view,
            work.svm,
            work.hardware,
            title=f"{name}{network.suffix}",
            about=about,
        )
    print(f"features: {features}", flush=True)
    return decided


def _with_baselines(
    config: DictConfig, loaded: "LoadedNetwork", layers: list[str], features: Path, decisions: Path
) -> "list[FrozenNetwork]":
    """Returns the network and, if it is trained, its untrained twin; the pixels are a layer of the first."""
    from sppnet.commands.frozen_networks import untrained_twin
    from sppnet.results.transfers import PIXELS
    from sppnet.transfer.evaluator import FrozenNetwork

    of_network = [layer for layer in layers if layer != PIXELS]
    all_layers = [*of_network, PIXELS] if PIXELS in [*layers, *config.baselines] else of_network
    networks = [
        FrozenNetwork(loaded.network, loaded.checkpoint, loaded.record, all_layers, features / "trained", decisions)
    ]
    if "untrained" in config.baselines and of_network and loaded.record["trained_on"] is not None:
        twin, name = untrained_twin(loaded, config.seed), f"untrained-seed{config.seed}"
        networks.append(
            FrozenNetwork(
                twin.network, twin.checkpoint, twin.record, of_network, features / name, decisions, f"-{name}"
            )
        )
    return networks


def _data_text(section: dict[str, Any]) -> str:
    """Returns the source and, where it says more, the last part of the root: "folder photos"."""
    name = Path(str(section.get("root") or section.get("name") or "")).name
    return f"{section['source']} {name}" if section["source"] in ("folder", "prepared", "hub") else section["source"]


def _splits_text(data: "TransferData") -> str:
    train, test = data.splits[0]
    plural = "s" if len(data.splits) > 1 else ""
    return f"{len(data.splits)} split{plural} into {len(train):,} to train on and {len(test):,} to test on"


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
