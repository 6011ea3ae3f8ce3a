"""The name of a run directory: a function of what is trained, not of the time or the machine."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.settings import plain
from sppnet.runtime.run_directory import RunDirectory, sizes_in_words, without_folders

# The settings that change the outcome of a run, and so the name of its directory.
_OUTCOME = ("backbone", "pooling", "hidden", "sizes", "data", "recipe", "seed", "initial_weights")


def run_directory(config: DictConfig) -> RunDirectory:
    """Returns the directory of the run that a training configuration describes.

    Raises ValueError for a name that would lead out of its folder.
    """
    outcome = _without_neutral(plain(OmegaConf.masked_copy(config, list(_OUTCOME))))
    digest = content_hash({**outcome, "data": without_folders(outcome["data"])})
    name = str(config.name or _default_name(config))
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name={name}: may hold letters, digits, dots, dashes and underscores only")
    return RunDirectory(Path(config.run or Path(config.runs) / f"{name}-seed{config.seed}-{digest}"), outcome)


def _without_neutral(outcome: dict[str, Any]) -> dict[str, Any]:
    """Leaves out settings that change nothing, so that runs from before they existed keep their names."""
    if outcome["initial_weights"] is None:
        del outcome["initial_weights"]
    for key in ("weights", "aligned"):
        if not outcome["backbone"].get(key):
            outcome["backbone"].pop(key, None)
    for section, neutral in neutral_settings().items():
        kept = outcome[section].items()
        outcome[section] = {k: v for k, v in kept if k not in neutral or v != neutral[k]}
    return outcome


def neutral_settings() -> dict[str, dict[str, Any]]:
    """Returns the settings of sizes and recipe that a run directory leaves out, as they change nothing."""
    shipped = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    return {section: shipped[section] for section in ("sizes", "recipe")}


def content_hash(content: dict[str, Any]) -> str:
    """Returns eight hexadecimal digits that depend on plain values only."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _default_name(config: DictConfig) -> str:
    """Names network, pyramid, sizes and data: "zf5-spp50-224-180-imagenet"."""
    network = re.sub(r"[^\w.-]+", "-", config.backbone.get("name", config.backbone.architecture))
    levels = config.pooling.levels
    pyramid = "none" if levels is None else f"spp{sum(n * n for n in levels)}"
    sizes = "-".join(str(word).replace(" ", "-") for word in sizes_in_words(config.sizes))
    return f"{network}-{pyramid}-{sizes}-{config.data.source}"
