"""Binds sections of a configuration to functions: the signature is the schema, the result plain checked values."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sppnet.classify.recipe import default_frozen, default_warmup
from sppnet.commands.errors import configuration_errors
from sppnet.commands.hints import unknown_key
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.overrides import hydra_value

if TYPE_CHECKING:
    from sppnet.data.sources import ImageData

# In configs/recipe: defaults that also fit short runs. A value that is typed takes their place.
OmegaConf.register_new_resolver("default_warmup", default_warmup, replace=True)
OmegaConf.register_new_resolver("default_frozen", default_frozen, replace=True)


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
    parameters = _parameters(target)
    for key in map(str, section):
        if key not in parameters:
            raise ValueError(unknown_key(prefix, key, list(parameters), section))

    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in section]
    if missing:
        raise ValueError(f"{prefix}{missing[0]}: missing; give it as {prefix}{missing[0]}=VALUE")
    hints = _type_hints(target)
    return {
        key: value if _needs_no_conversion(value, hints[key]) else _converted(section, key, hints[key], prefix)
        for key, value in plain(section).items()
    }


def typed(config: DictConfig, target: Callable[..., Any]) -> DictConfig:
    """Returns a configuration with numbers made text where `target` takes text: runs=2026 names a folder.

    Raises ValueError as `bound`.
    """
    values = bound(config, target)
    checked = config.copy()
    for key in (key for key, value in values.items() if isinstance(value, str)):
        checked[key] = values[key]
    return checked


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


def _needs_no_conversion(value: Any, hint: Any) -> bool:
    """Whether a value is of the type `hint` already and complete, as most are: `_converted` takes milliseconds."""
    if isinstance(hint, types.UnionType):
        return any(_needs_no_conversion(value, one) for one in typing.get_args(hint))
    if hint is Any:
        hint = list[Any] if isinstance(value, list) else dict[str, Any] if isinstance(value, dict) else type(value)

    if isinstance(value, list):
        inner = typing.get_args(hint) if typing.get_origin(hint) is list else ()
        return bool(inner) and all(_needs_no_conversion(element, *inner) for element in value)
    if isinstance(value, dict):
        return hint == dict[str, Any] and all(
            isinstance(key, str) and _needs_no_conversion(inner, Any) for key, inner in value.items()
        )
    # Text may be empty, "???" for a missing value, or an interpolation.
    return type(value) is hint and (not isinstance(value, str) or re.fullmatch(r"[\w./-]+", value) is not None)


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the keyword-only parameters of `target` by name: the keys of a section that is bound to it."""
    parameters = inspect.signature(target).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


@contextmanager
def named_keys(**sections: Callable[..., Any]) -> Iterator[None]:
    """Around calls of the functions of sections: names keys in their errors as the user types them.

    `named_keys(data=table)` makes "val_fraction=0: ..." of `table` to "data.val_fraction=0: ...".
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if len(error.args) == 1:  # else it is one of the system's, such as a file that may not be read
            error.args = (_with_sections(str(error), sections),)
        raise


def _with_sections(message: str, sections: dict[str, Callable[..., Any]]) -> str:
    """Puts the name of its section before every "KEY=" of a message, and before "KEY:" at its beginning."""
    for section, target in sections.items():
        keys = "|".join(_parameters(target))
        message = re.sub(rf"(?<![\w./-])({keys})=|^({keys}):", rf"{section}.\g<0>", message)
    return message


def open_source(source: str, options: dict[str, Any]) -> "ImageData":
    """Opens the data set of a section `data` of `bound_source`. Raises as `sppnet.data.sources.open_data`."""
    from sppnet.data.sources import DATA_SOURCES, open_data

    with named_keys(data=DATA_SOURCES[source]):
        return open_data(source, **options)


def _converted(section: DictConfig, key: str, hint: Any, prefix: str) -> Any:
    """Returns the value of one key as plain Python of the type `hint`."""
    try:
        merged = OmegaConf.merge(_schema(key, hint), OmegaConf.masked_copy(section, [key]))
        value = OmegaConf.to_container(merged, throw_on_missing=True)[key]  # type: ignore[call-overload,index]
    except MissingMandatoryValue as error:
        raise ValueError(f"{prefix}{error.full_key}: missing; give it as {prefix}{error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        name, given, wanted = _wrong_part(f"{prefix}{key}", section[key], hint)
        raise ValueError(f"{name}={_shown(given)}: must be {_in_words(wanted, name, given)}") from error
    if value == "":
        raise ValueError(f"{prefix}{key}: empty; give it as {prefix}{key}=VALUE, or leave it out")
    return value


def _wrong_part(name: str, given: Any, hint: Any) -> tuple[str, Any, Any]:
    """Returns name, value and type of what is wrong with a value: of the first wrong element of a list, or its own."""
    kind = next((one for one in typing.get_args(hint) if typing.get_origin(one) is list), hint)
    if typing.get_origin(kind) is list and isinstance(given, ListConfig):
        (wanted,) = typing.get_args(kind)
        for index, element in enumerate(given):
            try:
                OmegaConf.merge(_schema("element", wanted), {"element": element})
            except OmegaConfBaseException:
                return f"{name}[{index}]", element, wanted
    return name, given, hint


@cache
def _schema(key: str, hint: Any) -> Any:
    """Returns a configuration with one key, which OmegaConf merges only with what it can convert to the type `hint`."""
    return OmegaConf.structured(dataclasses.make_dataclass("Section", [(key, hint)]))


def _shown(value: Any) -> str:
    """Returns a value as the command line takes it, but text without quotes."""
    if isinstance(value, str):
        return value
    is_section = isinstance(value, ListConfig | DictConfig)
    return hydra_value(OmegaConf.to_container(value) if is_section else value)


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _in_words(hint: Any, name: str, given: object) -> str:
    """Returns which values a type allows. `given` is the wrong value of the key `name`."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is list:
        if type(given) in (int, arguments[0]) and arguments[0] is not float:  # lists of those have several numbers
            return f"a list, as in {name}=[{given}]"
        return f"a list of {'text' if arguments[0] is str else 'numbers'}, in brackets"
    if kind is dict:
        return f"keys with values, as in {name}={{KEY:VALUE}}"
    if arguments:
        return ", or ".join(_in_words(one, name, given) for one in arguments)
    return _WORDS[hint]


@cache
def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        return typing.get_type_hints(target.__init__)
    return typing.get_type_hints(target)
