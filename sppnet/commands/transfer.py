"""Tests features of a frozen network on other data by linear SVMs: `sppnet transfer --help`."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import find_runs
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.naming import content_hash
from sppnet.commands.settings import bound, bound_choice, named_keys, resolved
from sppnet.geometry import LARGEST_SCALE
from sppnet.results.page import markdown_table
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.names import counted
from sppnet.runtime.rules import SEED
from sppnet.runtime.run_directory import with_absolute_places, without_folders

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
    hidden: int | None = None,
    svm: dict[str, Any],
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/transfer.yaml; sections are checked against the functions that take them.

    `paper_epochs` and `hidden` are of no use here, but choices of the group `backbone` set them.
    """


class Checked(NamedTuple):
    """The settings of a command, checked, and what is made of them."""

    config: DictConfig  # with values of the types of `settings`
    runs: list[Path]  # to test; empty for a network of backbone=NAME
    source: str
    options: dict[str, Any]  # of the source
    svm: "Svm"
    hardware: "Hardware"


def check(config: DictConfig) -> Checked:
    """Checks a resolved configuration. Opens no data and loads no network. Raises ValueError if it cannot be run."""
    from sppnet.data.sources import DATA_SOURCES, MULTI_LABEL_SOURCES  # torch takes seconds, and --help should not
    from sppnet.runtime.hardware import Hardware
    from sppnet.transfer.probe import Svm
    from sppnet.transfer.protocols import check_splits

    config = _typed(config)
    runs = _check_network(config)
    _check_views(config)
    if unknown := [name for name in config.baselines if name not in _BASELINES]:
        raise ValueError(f"baselines={config.baselines}: {unknown[0]} must be one of {', '.join(_BASELINES)}")
    if config.get("data") is None:
        raise ValueError("data: missing; give it as data=folder data.root=PATH, data=caltech101 or data=voc2007")
    source, options = bound_choice(config.data, "source", DATA_SOURCES | MULTI_LABEL_SOURCES, "data.")
    check_splits(config.splits, source, options)
    hardware = Hardware(**bound(config.hardware, Hardware, "hardware."))
    return Checked(config, runs, source, options, Svm(**bound(config.svm, Svm, "svm.")), hardware)


def _typed(config: DictConfig) -> DictConfig:
    """Returns the configuration with values of the types of `settings`: scales=['224'] is [224]."""
    return OmegaConf.create(bound(config, settings))


def _check_network(config: DictConfig) -> list[Path]:
    """Returns the runs to test. Raises ValueError unless there are runs or one network to build."""
    from sppnet.commands.frozen_networks import check_backbone

    has_backbone = config.get("backbone") is not None
    if config.run is None and not has_backbone:
        raise ValueError("run: missing; give run=RUN, a run directory or a checkpoint, or backbone=NAME")
    if config.run is not None and has_backbone:
        raise ValueError(f"run={config.run}: a run has its own network; give run=RUN or backbone=NAME, not both")
    if config.get("pooling") is not None and not has_backbone:
        raise ValueError("pooling: a run has its own pyramid; pooling=NAME is for backbone=NAME")
    if config.get("hidden") is not None:
        raise ValueError(f"hidden={config.hidden}: is for training; fc6 and fc7 of this network would be random")
    if has_backbone:
        check_backbone(config)
    if not SEED.holds(config.seed):
        raise ValueError(f"seed={config.seed}: must be {SEED.words.removeprefix('a whole number ')}")
    return [] if has_backbone else find_runs(config.run)


def _check_views(config: DictConfig) -> None:
    from sppnet.transfer.features import VIEWS

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
    checked = check(config)
    config = checked.config

    from sppnet.commands.frozen_networks import build_network, load_run
    from sppnet.data.sources import content_digests
    from sppnet.transfer.evaluator import check_memory

    @lru_cache(maxsize=1)  # a single network is loaded once; of several, one at a time is in memory
    def loaded(path: Path | None) -> "LoadedNetwork":
        return build_network(config) if path is None else load_run(path)

    # Whatever is wrong with one of the networks should not stop the command after hours with the others.
    paths: list[Path | None] = [*checked.runs] or [None]
    tests = [(path, *_layers_and_views(config, loaded(path))) for path in paths]
    section, data = _open_data(checked)
    for path, layers, views in tests:
        for view in views:
            check_memory(loaded(path).network, layers, data, view, checked.svm)

    digests = content_digests(data.images, "reading the images")
    work = _Work(config, data, digests, section, checked.svm, checked.hardware)
    for path, layers, views in tests:
        _transfer_network(work, loaded(path), layers, views)


def _open_data(checked: Checked) -> tuple[dict[str, Any], "TransferData"]:
    """Opens the data. Returns the section with an absolute root, and the data."""
    from sppnet.data.sources import DATA_SOURCES, MULTI_LABEL_SOURCES
    from sppnet.transfer.protocols import open_transfer_data

    source, options, config = checked.source, with_absolute_places(checked.options), checked.config
    section = {"source": source, **options}
    with named_keys(data=(DATA_SOURCES | MULTI_LABEL_SOURCES)[source]):
        data = open_transfer_data(source, splits=config.splits, exclude=config.exclude, **options)
    images = f"{counted(len(data.truth), 'image')} of {counted(len(data.classes), 'class')}"
    print(f"{_data_text(section)}: {images}, {_splits_text(data)}")
    return section, data


def _layers_and_views(config: DictConfig, loaded: "LoadedNetwork") -> tuple[list[str], list["View"]]:
    """Returns the layers and the views to test, PIXELS last. Raises ValueError for any that the network cannot take."""
    from sppnet.commands.frozen_networks import chosen_layers
    from sppnet.results.transfers import PIXELS
    from sppnet.transfer.evaluator import View
    from sppnet.transfer.features import check_view

    layers = chosen_layers(loaded, config.layers)
    if PIXELS in [*layers, *config.baselines]:
        layers = [*(layer for layer in layers if layer != PIXELS), PIXELS]
    views = [View(view=config.view, scale=scale, aligned=config.aligned) for scale in config.scales]
    for view in views:
        check_view(loaded.network, layers, view.view, view.scale)
    return layers, views


def _transfer_network(work: _Work, loaded: "LoadedNetwork", layers: list[str], views: list["View"]) -> None:
    """Tests the features of a network and its baselines at every scale, and prints them."""
    from sppnet.results.transfer_page import summary_table

    print(f"\n{loaded.folder}: {loaded.record['text']}", flush=True)
    if not loaded.finished:
        print(f"{loaded.folder}: has not finished training; this tests its last checkpoint", flush=True)
    networks = _with_untrained(work.config, loaded, layers)
    decided = [scores for view in views for scores in _transfer_view(work, loaded.folder, networks, view)]
    print()
    print(markdown_table(*summary_table(decided)))
    print(f"a page of it: {shown_command('tables')} transfer runs={loaded.folder}")


def _with_untrained(config: DictConfig, loaded: "LoadedNetwork", layers: list[str]) -> "list[FrozenNetwork]":
    """Returns the network and, if it is trained, its untrained twin; the pixels are a layer of the first."""
    from sppnet.commands.frozen_networks import untrained_twin
    from sppnet.results.transfers import PIXELS
    from sppnet.transfer.evaluator import FrozenNetwork

    networks = [FrozenNetwork(loaded.network, loaded.checkpoint, loaded.record, layers)]
    of_network = [layer for layer in layers if layer != PIXELS]
    if "untrained" in config.baselines and of_network and loaded.record["trained_on"] is not None:
        twin = untrained_twin(loaded, config.seed)
        networks.append(FrozenNetwork(twin.network, None, twin.record, of_network, f"-untrained-seed{config.seed}"))
    return networks


def _transfer_view(work: _Work, run: Path, networks: "list[FrozenNetwork]", view: "View") -> list["Scores"]:
    """Tests the features of networks by one view. Files go into folders of the run."""
    from sppnet.transfer.evaluator import transfer_to_files

    name = f"{work.section['source']}-{view.view}{view.scale}{'-aligned' if view.aligned else ''}"
    features = run / "features" / f"{name}-{content_hash({'data': without_folders(work.section)})}"
    # Decisions on other images or by other settings go to another folder, because tables average those of one folder.
    images = [work.data.fingerprint(indices, work.digests) for indices in work.data.splits[0]]
    settings = {"images": images, "C": work.svm.C, "precision": str(work.hardware.autocast)}
    decisions = run / "transfer" / f"{name}-{content_hash(settings)}"

    about = {
        "data": work.section,
        "data_text": _data_text(work.section),
        "exclude": sorted(work.config.exclude),
        "run": str(run),
    }
    decided: list[Scores] = []
    for network in networks:
        decided += transfer_to_files(
            network,
            work.data,
            work.digests,
            view,
            work.svm,
            work.hardware,
            features_folder=features / (network.suffix.removeprefix("-") or "trained"),
            folder=decisions,
            title=f"{name}{network.suffix}",
            about=about,
        )
    print(f"features: {features}", flush=True)
    return decided


def _data_text(section: dict[str, Any]) -> str:
    """Returns the source and, where it says more, the last part of the root: "folder photos"."""
    name = Path(str(section.get("file") or section.get("root") or section.get("name") or "")).name
    of_any_data = ("folder", "table", "multilabel", "prepared", "hub")
    return f"{section['source']} {name}" if section["source"] in of_any_data else section["source"]


def _splits_text(data: "TransferData") -> str:
    train, test = data.splits[0]
    return f"{counted(len(data.splits), 'split')} into {len(train):,} to train on and {len(test):,} to test on"


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
