"""The networks that `transfer` tests: of runs, of checkpoints, or of timm's weights; and their untrained twins."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from sppnet.backbones import BACKBONES
from sppnet.commands.naming import content_hash
from sppnet.commands.settings import bound, bound_choice, named_keys
from sppnet.commands.train import pooling
from sppnet.initialization import INITIALIZATIONS
from sppnet.network import IMAGENET_MEAN, IMAGENET_STD, SPPNet, load_network
from sppnet.results.records import read_result
from sppnet.results.runs import Run
from sppnet.results.transfers import PIXELS
from sppnet.runtime.names import check_names
from sppnet.runtime.run_directory import checkpoint_digest, is_published, read_run_config
from sppnet.timm_backbone import pretrained_statistics

_FC_LAYERS = ("fc6", "fc7", "fc8")


class LoadedNetwork(NamedTuple):
    """A network to test and what is known of it."""

    network: SPPNet  # in eval mode
    checkpoint: str | None  # digest of the checkpoint; None if it has none
    record: dict[str, Any]  # as decisions record it
    folder: Path  # of the run; files go into folders in it
    initialization: str  # of its weights before training: a name of sppnet.network.INITIALIZATIONS
    trained_here: bool
    finished: bool = True  # its training, as far as that is known


def load_run(path: Path) -> LoadedNetwork:
    """Loads the network of a run directory or checkpoint."""
    network = load_network(path)
    config = read_run_config(path) if path.is_dir() else None
    checkpoint = checkpoint_digest(path)
    if config is None:
        description = json.dumps(network.description(), sort_keys=True)
        record = _record(network, trained_on=f"checkpoint {path.name}", setting=description)
        in_place = path.is_dir() and not is_published(path)
        folder = path if in_place else path.with_name(f"{path.name}.transferred")
        return LoadedNetwork(network, checkpoint, record, folder, _probable_initialization(network), True)

    run = Run(path, config, read_result(path))
    record = _record(
        network,
        variant=run.variant,
        trained_on=_training_text(config["data"]),
        on_imagenet=run.on_imagenet,
        seed=int(config["seed"]),
        setting=run.setting(),
    )
    initialization = config["recipe"].get("initialization")
    if not isinstance(initialization, str) or initialization not in INITIALIZATIONS:
        initialization = _probable_initialization(network)
    return LoadedNetwork(network, checkpoint, record, path, initialization, True, run.result is not None)


def _training_text(data: dict[str, Any]) -> str:
    """Names the data of a run, such as "shapes" or "shapes, 7 of the classes"."""
    some = f", {len(data['classes'])} of the classes" if data.get("classes") else ""
    return f"{data['source']}{some}"


def _probable_initialization(network: SPPNet) -> str:
    """Returns the initialization that suits the inputs of a network."""
    return "paper" if max(network.input_std) == 1 else "fan_in"


def check_backbone(config: DictConfig) -> None:
    """Raises ValueError for sections `backbone` and `pooling`, or layers, that `build_network` cannot take."""
    _, options = bound_choice(config.backbone, "architecture", BACKBONES, "backbone.")
    if config.get("pooling") is not None:
        bound(config.pooling, pooling, "pooling.")
    _check_not_random(config.layers or [])
    if options.get("pretrained") or options.get("weights"):
        pretrained_statistics(options["name"])


def build_network(config: DictConfig) -> LoadedNetwork:
    """Builds the network of the sections `backbone` and `pooling`: with timm's weights, or with random ones."""
    architecture, options = bound_choice(config.backbone, "architecture", BACKBONES, "backbone.")
    has_levels = config.get("pooling") is not None
    levels = bound(config.pooling, pooling, "pooling.")["levels"] if has_levels else [6, 3, 2, 1]
    pretrained = bool(options.get("pretrained") or options.get("weights"))
    mean, std = pretrained_statistics(options["name"]) if pretrained else (IMAGENET_MEAN, IMAGENET_STD)

    with torch.random.fork_rng(devices=[]), named_keys(backbone=BACKBONES[architecture], pooling=pooling):
        torch.manual_seed(config.seed)
        backbone = BACKBONES[architecture](**options)
        # Its fully connected layers stay random and are never used.
        network = SPPNet(backbone, levels, 1, hidden=1, initialization="fan_in", input_mean=mean, input_std=std).eval()

    setting = {**network.description(), "pretrained": options.get("weights") or options.get("pretrained", False)}
    record = _record(
        network,
        trained_on="timm" if pretrained else None,
        seed=None if pretrained else config.seed,
        setting=json.dumps(setting, sort_keys=True),
    )
    seed = "pretrained" if pretrained else f"untrained-seed{config.seed}"
    # Without the fully connected layers, which are not used.
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    record["text"] = f"{network.summary().rpartition(', ')[0]}, {parameters:,} parameters"
    folder = Path(config.runs) / f"transfer-{record['name'].replace('/', '-')}-{seed}-{content_hash(setting)}"
    return LoadedNetwork(network, None, record, folder, "fan_in", False)


def untrained_twin(loaded: LoadedNetwork, seed: int) -> LoadedNetwork:
    """Returns the same network with random weights, initialized as before its training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = SPPNet.from_description(loaded.network.description(), loaded.initialization).eval()
    record = {**loaded.record, "trained_on": None, "on_imagenet": False, "seed": seed}
    return loaded._replace(network=twin, checkpoint=None, record=record)


def chosen_layers(loaded: LoadedNetwork, given: Sequence[str] | None) -> list[str]:
    """Returns the layers to test, by default the pyramid and, of a network trained here, fc6 and fc7 if it has them.

    Raises ValueError for unknown layers, and for those of a network that was not trained here whose weights are random.
    """
    if given is None:
        hidden = loaded.trained_here and loaded.network.hidden is not None
        return ["pool5", "fc6", "fc7"] if hidden else ["pool5"]
    if not loaded.trained_here:
        _check_not_random(given)
        known = (layer for layer in loaded.network.layers if layer not in _FC_LAYERS)
        check_names("layers", given, (*known, PIXELS))
    loaded.network.check_layers("layers", given, [PIXELS])
    return list(dict.fromkeys(given))


def _check_not_random(layers: Sequence[str]) -> None:
    if random := [layer for layer in layers if layer in _FC_LAYERS]:
        raise ValueError(
            f"layers=[{','.join(layers)}]: {random[0]} has random weights, as this network was not trained here; use "
            "layers up to pool5"
        )


def _record(
    network: SPPNet,
    *,
    setting: str,
    trained_on: str | None,
    variant: str | None = None,
    on_imagenet: bool = False,
    seed: int | None = None,
) -> dict[str, Any]:
    options = network.backbone.options
    return {
        "name": str(options.get("name") or options["architecture"]),
        "levels": None if network.levels is None else list(network.levels),
        "variant": variant,
        "trained_on": trained_on,
        "on_imagenet": on_imagenet,
        "seed": seed,
        "setting": setting,
        "text": network.summary(),
    }
