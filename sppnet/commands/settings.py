"""Binds sections of a configuration to functions: the signature is the schema, the result plain checked values."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sppnet.classify.recipe import default_warmup
from sppnet.commands.errors import configuration_errors
from sppnet.commands.hints import unknown_key
from sppnet.runtime.checkout import shown_command

# In configs/recipe/fast.yaml: a default that also fits short runs. A value that is typed takes its place.
OmegaConf.register_new_resolver("default_warmup", default_warmup, replace=True)


def resolved(config: DictConfig) -> DictConfig:
    """Returns the configuration without interpolations, and with ~/ spelled out.

    Raises ValueError for an interpolation that has no value.
    """
    with configuration_errors():
        values = _without_tilde(OmegaConf.to_container(config, resolve=True))
        return typing.cast("DictConfig", OmegaConf.create(values))


def _without_tilde(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tilde(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_tilde(inner) for inner in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and re.match("~(/|$)", value) else value


def plain(config: DictConfig) -> dict[str, Any]:
    """Returns a configuration as dictionaries, lists and values."""
    return typing.cast("dict[str, Any]", OmegaConf.to_container(config))


def bound(section: Any, target: Callable[..., Any], prefix: str = "") -> dict[str, Any]:
    """Returns the section as plain keyword arguments of `target`, checked against its keyword-only signature.

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
            raise ValueError(unknown_key(prefix, key, list(parameters), section))

    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in section]
    if missing:
        raise ValueError(f"{prefix}{missing[0]}: missing; give it as {prefix}{missing[0]}=VALUE")
    hints = _type_hints(target)
    return {str(key): _converted(section, str(key), hints[str(key)], prefix) for key in section}


def bound_choice(
    section: Any, key: str, choices: dict[str, Callable[..., Any]], prefix: str
) -> tuple[str, dict[str, Any]]:
    """Returns the choice that `section[key]` names, and the other keys as checked arguments of it.

    Raises ValueError as `bound`, and for a choice that does not exist.
    """
    if not isinstance(section, DictConfig) or key not in section:
        raise ValueError(f"{prefix}{key}: missing; must be one of {', '.join(choices)}")
    choice = section[key]
    if not isinstance(choice, str) or choice not in choices:
        raise ValueError(f"{prefix}{key}={choice}: must be one of {', '.join(choices)}")
    options = OmegaConf.masked_copy(section, [str(name) for name in section if name != key])
    return choice, bound(options, choices[choice], prefix)


def bound_source(section: Any) -> tuple[str, dict[str, Any]]:
    """Returns the source of `sppnet.data.sources.DATA_SOURCES` that a section `data` names, and its checked arguments.

    Raises ValueError as `bound_choice`, and for a source whose images have several labels each.
    """
    from sppnet.data.sources import DATA_SOURCES, MULTI_LABEL_SOURCES  # torch takes seconds, and --help should not

    source = section.get("source") if isinstance(section, DictConfig) else None
    if source in MULTI_LABEL_SOURCES:
        raise ValueError(
            f"data.source={source}: has several labels per image, and this command needs one; {source} is for "
            f"{shown_command('transfer')}"
        )
    return bound_choice(section, "source", DATA_SOURCES, "data.")


def _converted(section: DictConfig, key: str, hint: Any, prefix: str) -> Any:
    """Returns the value of one key as plain Python of the type `hint`."""
    schema = OmegaConf.structured(dataclasses.make_dataclass("Section", [(key, hint)]))
    try:
        merged = OmegaConf.merge(schema, OmegaConf.masked_copy(section, [key]))
        value = OmegaConf.to_container(merged, throw_on_missing=True)[key]  # type: ignore[call-overload,index]
    except MissingMandatoryValue as error:
        raise ValueError(f"{prefix}{error.full_key}: missing; give it as {prefix}{error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        if "is not a ListConfig" in str(error.msg):
            given = f"{prefix}{key}={section[key]}"
            raise ValueError(f"{given}: must be a list, as in {prefix}{key}=[{section[key]}]") from error
        place, reason = f"{prefix}{error.full_key or key}", str(error.msg).splitlines()[0]
        if number := re.fullmatch(r"Value '(.*)' of type '.*' could not be converted to (Integer|Float)", reason):
            kind = "a whole number" if number[2] == "Integer" else "a number"
            raise ValueError(f"{place}={number[1]}: must be {kind}") from error
        raise ValueError(f"{place}: {reason}") from error
    if value == "":
        raise ValueError(f"{prefix}{key}: empty; give it as {prefix}{key}=VALUE, or leave it out")
    return value


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        return typing.get_type_hints(target.__init__)
    return typing.get_type_hints(target)
