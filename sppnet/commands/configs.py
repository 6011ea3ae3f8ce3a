"""The shipped configuration files: the groups of a command, the choices of a group, composed configurations."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from sppnet.runtime.checkout import ROOT, shown_command

_PACKAGED = Path(__file__).parents[1] / "configs"  # only where the package was installed from a wheel
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else ROOT / "configs"

_DETECTION_DATA = {"voc", "coco", "scenes"}  # choices of the group data


def choices(group: str) -> list[str]:
    """Returns the choices of a group, none if there is no such group; of "" the commands that have a configuration."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def groups_of(config_name: str) -> dict[str, list[str]]:
    """Returns the groups that a command's configuration is composed of, each with its choices."""
    groups: dict[str, list[str]] = {}
    for entry in yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8"))["defaults"]:
        if isinstance(entry, str):
            groups |= groups_of(entry) if entry != "_self_" else {}
        else:
            listed = {group: [one for one in choices(group) if suits(config_name, group, one)] for group in entry}
            groups |= {group: found for group, found in listed.items() if found}
    return groups


def settings_of(config_name: str) -> str:
    """Returns the settings of a command with their defaults and comments, as its configuration file has them."""
    text = (CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8")
    return text.partition("\nhydra:")[0].split("\n\n", 1)[1].rstrip()


def suits(command: str, group: str, choice: str) -> bool:
    """Whether a choice is for a command: experiments are for the one that their header names, data for its task."""
    if group == "data":
        return (choice in _DETECTION_DATA) == (command == "detect")
    meant = _command_of_experiment(choice) if group == "experiment" else None
    return meant is None or command in {"train": ("train", "benchmark")}.get(meant, (meant,))


def _command_of_experiment(name: str) -> str | None:
    """Returns the command in the header of an experiment; None if it names none, or is not one of ours."""
    file = CONFIGS / "experiment" / f"{name}.yaml"
    header = (
        re.search(r"^# Command: python scripts/(\w+)\.py ", file.read_text("utf-8"), re.M) if file.is_file() else None
    )
    return header[1] if header else None


def check_experiments(command: str, overrides: Sequence[str]) -> None:
    """Raises ValueError for an override that chooses an experiment of another command."""
    for override in overrides:
        key, _, value = override.partition("=")
        for name in re.findall(r"[\w.-]+", value) if key.lstrip("+") == "experiment" else ():
            if not suits(command, "experiment", name):
                meant = shown_command(str(_command_of_experiment(name)))
                raise ValueError(f"experiment={name}: is for another command: {meant} experiment={name}")


def section_of_choice(group: str, choice: str) -> Any:
    """Reads what a choice puts into the section that is named as its group."""
    file = CONFIGS / group / f"{choice}.yaml"
    config: Any = OmegaConf.load(file)
    return config.get(group, {}) if "@package _global_" in file.read_text(encoding="utf-8") else config


def given_overrides() -> list[str]:
    """Returns the overrides on the command line."""
    return [word for word in sys.argv[1:] if "=" in word or word.startswith("~")]


def compose_here(overrides: list[str]) -> DictConfig:
    """Composes the configuration of the command that runs, with Hydra's own section."""
    name = Path(sys.argv[0]).stem
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides, return_hydra_config=True)


def compose_chosen() -> DictConfig:
    """Composes the configuration of the command that runs, with the groups chosen on the command line if possible."""
    chosen = [word for word in given_overrides() if choices(word.partition("=")[0])]
    try:
        return compose_here(chosen)
    except Exception:  # a choice that does not exist, or several of a sweep
        return compose_here([])


# For the help of each command; Hydra's $APP_CONFIG_GROUPS lists the groups of all commands.
OmegaConf.register_new_resolver(
    "groups_of",
    lambda name: "\n".join(f"{group}: {', '.join(listed)}" for group, listed in groups_of(name).items()),
    replace=True,
)
OmegaConf.register_new_resolver("settings_of", settings_of, replace=True)
OmegaConf.register_new_resolver("shown_command", shown_command, replace=True)
