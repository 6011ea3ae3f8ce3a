"""From a composed Hydra config to checked plain values, and from errors to one line on the terminal."""

import dataclasses
import difflib
import hashlib
import inspect
import json
import os
import sys
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from tqdm import tqdm

# What changes the outcome of a run, and so names its directory.
OUTCOME = ("backbone", "pooling", "hidden", "sizes", "data", "recipe", "seed")


def bound(section: Any, target: Callable[..., Any], prefix: str = "") -> dict[str, Any]:
    """The section as plain keyword arguments of `target`, checked against its keyword-only signature.

    Raises ValueError naming the key, the value and what is allowed, for an unknown or missing key and a wrong type.
    """
    if not isinstance(section, DictConfig):
        raise ValueError(f"{prefix.rstrip('.')}={section!r}: must be a section with keys of its own")
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in map(str, section):
        if key not in parameters:
            raise ValueError(f"{prefix}{key}: no such key; {_allowed(key, parameters)}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in section]
    if missing:
        raise ValueError(f"{prefix}{missing[0]}: missing")
    hints = _type_hints(target)
    schema = dataclasses.make_dataclass("Section", [(str(key), hints[str(key)]) for key in section])
    try:
        plain = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), section), throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{prefix}{error.full_key}: missing; give it as {prefix}{error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{prefix}{error.full_key}: {str(error.msg).splitlines()[0]}") from error
    return typing.cast("dict[str, Any]", plain)


def bound_choice(
    section: Any, key: str, choices: dict[str, Callable[..., Any]], prefix: str
) -> tuple[str, dict[str, Any]]:
    """The choice that `section[key]` names, and the other keys as checked arguments of it."""
    if not isinstance(section, DictConfig) or key not in section:
        raise ValueError(f"{prefix}{key}: missing; must be one of {', '.join(choices)}")
    choice = section[key]
    if choice not in choices:
        raise ValueError(f"{prefix}{key}={choice}: must be one of {', '.join(choices)}")
    options = OmegaConf.masked_copy(section, [str(name) for name in section if name != key])
    return choice, bound(options, choices[choice], prefix)


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        return typing.get_type_hints(target.__init__)
    return typing.get_type_hints(target)


def _allowed(key: str, names: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(names)}"


def run_directory(config: DictConfig) -> tuple[Path, DictConfig]:
    """Where a run lives, and those parts of its config that decide that: nothing of the time or the machine."""
    outcome = OmegaConf.masked_copy(config, list(OUTCOME))
    if "root" in outcome.data:
        outcome.data.root = Path(outcome.data.root).name
    text = json.dumps(OmegaConf.to_container(outcome), sort_keys=True)
    name = f"{config.name or _default_name(config)}-seed{config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Path(config.run or Path(config.runs) / name), outcome


def _default_name(config: DictConfig) -> str:
    network = config.backbone.get("name", config.backbone.architecture)
    levels = config.pooling.levels
    pyramid = "none" if levels is None else f"spp{sum(n * n for n in levels)}"
    sizes = "-".join(str(side) for side in config.sizes.get("cycle") or ["random", *config.sizes.uniform])
    return f"{network}-{pyramid}-{sizes}-{config.data.source}"


def claim_run_directory(run: Path, config: DictConfig) -> None:
    """Writes config.yaml into a new run directory; in one that is there, makes sure that it is of the same run.

    Raises ValueError naming the first key that differs.
    """
    file = run / "config.yaml"
    if file.is_file():
        there = _flat(OmegaConf.to_container(OmegaConf.load(file)))
        here = _flat(OmegaConf.to_container(config))
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                raise ValueError(
                    f"{run}: holds another run: {key} is {there.get(key)} there and {here.get(key)} here; "
                    "give another run=PATH, or leave it out"
                )
        return
    run.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"config.yaml.partial{os.getpid()}")
    OmegaConf.save(config, partial)
    partial.replace(file)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns what a user can mend into one line on stderr and an exit code that is not 0.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    # tqdm writes above a progress bar, if there is one.
    warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {message}", file=sys.stderr)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last finished epoch", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not _can_be_mended(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _can_be_mended(error: Exception) -> bool:
    """Whether an error speaks of what the user gave, rather than of the code."""
    # Lightning's, for a GPU where there is none, say; by name, because importing Lightning takes seconds.
    misconfigured = type(error).__name__ == "MisconfigurationException"
    return misconfigured or isinstance(error, (ValueError, OSError, OmegaConfBaseException))
