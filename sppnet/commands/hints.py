"""What to say about a key, choice or option that does not exist: which one was probably meant, or what is allowed."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import choices, compose_chosen, section_of_choice, suits


def no_such_choice(group: str, choice: str, options: Sequence[str]) -> str:
    """Returns what to say about a choice that is not one of `options`.

    Args:
        group: "" for the name of a whole configuration.
    """
    line = f"{group or '--config-name'}={choice}: must be one of {', '.join(options)}"
    if group == "backbone" and _is_timm_model(choice):
        return f"{line}; for the model of timm: backbone=timm backbone.name={choice}"
    close = difflib.get_close_matches(choice, options, n=1)
    return f"{line}; did you mean {close[0]}?" if close else line


def _is_timm_model(name: str) -> bool:
    import timm  # takes seconds

    return bool(timm.is_model(name))


def no_such_key(key: str) -> str:
    """Returns what to say about an override of a key that this command's configuration does not have."""
    config = compose_chosen()
    if key in config.hydra.runtime.choices:
        return f"{key}: must be one of {', '.join(choices(key))}"

    section, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(config, section) if section else config
    if parent is None:
        return (
            f"{section}: no such section; {_allowed(section, [name for name in map(str, config) if name != 'hydra'])}"
        )
    if not isinstance(parent, DictConfig):
        return f"{key}: {section} is a value, not a section"

    if others := _choices_with_key(section, leaf):
        chosen = OmegaConf.select(config, f"hydra.runtime.choices.{section}")
        return f"{key}: {section}={chosen} has no such key; {', '.join(f'{section}={other}' for other in others)} has"
    keys = dotted_keys(config.hydra, "hydra.") if key.startswith("hydra.") else dotted_keys(config)
    return f"{key}: no such key; {_allowed(key, keys)}"


def _choices_with_key(group: str, key: str) -> list[str]:
    """Returns the choices of a group, for the command that runs, whose section has `key`."""
    if not group:
        return []
    of_command = [choice for choice in choices(group) if suits(Path(sys.argv[0]).stem, group, choice)]
    return [choice for choice in of_command if key in section_of_choice(group, choice)]


def no_such_option(option: str, value: str | None) -> str:
    """Returns what to say about --epochs=3, or about "--epochs 3": keys are written without dashes."""
    key, equals, rest = option.lstrip("-").partition("=")
    meant = closest_key(key, dotted_keys(compose_chosen())) if key else None
    if option.startswith("--") and meant:
        return f"{option}: keys have no dashes; did you mean {meant}={rest if equals else value or 'VALUE'}?"
    return f"{option}: no such option; keys are given as KEY=VALUE, without dashes; --help shows examples"


def unknown_key(prefix: str, key: str, names: Sequence[str], section: DictConfig) -> str:
    """Returns what to say about a `key` in `section` that is not one of `names`.

    Args:
        prefix: of the section, "recipe."; "" for the whole configuration.
    """
    nested = [] if prefix else [other for other in dotted_keys(section) if "." in other]
    allowed = _allowed(f"{prefix}{key}", [*(f"{prefix}{name}" for name in names), *nested])
    return f"{prefix}{key}: no such key; {allowed}"


def closest_key(key: str, keys: Iterable[str]) -> str | None:
    """Returns which of the dotted `keys` was probably meant, or None.

    By the same name in another section, by spelling, by one of its words (rate), by initials (lr: learning_rate).
    """
    everywhere = list(keys)
    section, _, leaf = key.rpartition(".")
    here = [other for other in everywhere if other.rpartition(".")[0] == section]
    by_name = {other.rpartition(".")[2]: other for other in (*reversed(everywhere), *here)}
    if leaf in by_name:
        return by_name[leaf]

    siblings = {other.rpartition(".")[2]: other for other in here}
    if close := difflib.get_close_matches(leaf, siblings, n=1):
        return siblings[close[0]]

    for names in (siblings, by_name):
        for name, other in names.items():
            words = name.split("_")
            if leaf in words or (len(words) > 1 and leaf == "".join(word[:1] for word in words)):
                return other

    close = difflib.get_close_matches(leaf, by_name, n=1)
    return by_name[close[0]] if close else None


def _allowed(key: str, keys: Sequence[str]) -> str:
    """Returns what the user probably meant by `key`, or else all keys of that section."""
    section = key.rpartition(".")[0]
    close = closest_key(key, keys)
    if close is not None:
        return f"did you mean {close.removeprefix(f'{section}.') if section else close}?"
    siblings = [other.rpartition(".")[2] for other in keys if other.rpartition(".")[0] == section]
    return f"allowed: {', '.join(siblings)}"


def dotted_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Returns the keys of a configuration and of its sections, without Hydra's own."""
    keys = []
    for name in map(str, config):
        if not prefix and name == "hydra":
            continue
        keys.append(f"{prefix}{name}")
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            keys += dotted_keys(node, f"{prefix}{name}.")
    return keys
