"""The words of a command line: checked before Hydra reads them, with ~/ spelled out."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import check_experiments
from sppnet.commands.errors import configuration_errors
from sppnet.commands.hints import no_such_option
from sppnet.commands.settings import resolved


def checked_arguments(arguments: list[str]) -> list[str]:
    """Returns the words of the command line, options first, with ~/ spelled out.

    Raises ValueError for an option that does not exist, for an override that Hydra cannot parse, and for an experiment
    of another command.
    """
    parsed = _parsed(arguments)
    if parsed.experimental_rerun is not None:
        raise ValueError("--experimental-rerun: not supported, because it runs code from the file; give the overrides")
    if parsed.config_path is not None and not Path(parsed.config_path).is_absolute():
        raise ValueError(
            f"--config-path={parsed.config_path}: must be an absolute folder, which replaces the configurations of "
            "sppnet; --config-dir=FOLDER adds yours to them"
        )

    options = list(arguments)
    for override in parsed.overrides:
        options.remove(override)
    overrides = [with_home(override) for override in parsed.overrides]
    for override in overrides:
        check_grammar(override)
    check_experiments(Path(sys.argv[0]).stem, overrides)
    return [*options, *overrides]


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Parses Hydra's options. Raises ValueError for one that does not exist."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        parsed, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if unknown:
        following = arguments[arguments.index(unknown[0]) + 1 :]
        raise ValueError(no_such_option(unknown[0], next((word for word in following[:1] if "=" not in word), None)))
    return parsed


def read_words(words: list[str], form: str) -> DictConfig:
    """Reads the words of a command without a configuration file, such as runs=PATTERN, as the other commands do.

    Args:
        words: of the command line.
        form: what they must be, for the error.
    """
    if malformed := [word for word in words if "=" not in word or word.startswith("-")]:
        raise ValueError(f"{malformed[0]}: must be {form}")
    with configuration_errors():
        config = OmegaConf.create()
        for word in map(with_home, words):
            check_grammar(word)
            override = OverridesParser.create().parse_override(word)
            OmegaConf.update(config, override.key_or_group, override.value())
        return resolved(config)


def texts(key: str, value: Any, form: str) -> list[str]:
    """Returns one text or several as a list. Raises ValueError, with `form` for what must be given, for all else."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(text, str) and text for text in given):
        raise ValueError(f"{key}={'null' if value is None else value}: must be {form}")
    return given


def with_home(override: str) -> str:
    """Spells out ~/ in an override: bash leaves that of data.root=~/images to the command, and Hydra refuses it."""
    return re.sub(r"(?<=[=,[])~(?=[/,\]]|$)", str(Path.home()), override)


def check_grammar(override: str) -> None:
    """Raises ValueError, with words to type, for an override that Hydra cannot parse."""
    parser = OverridesParser.create()
    if not override.partition("=")[0].strip("+~"):
        raise ValueError(f"{override}: must be KEY=VALUE")
    try:
        parser.parse_override(override)
    except HydraException as error:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"{override}: must be KEY=VALUE") from error

        quoted = f"{key}='{value}'"
        try:
            parser.parse_override(quoted)
        except HydraException:
            quoted = ""
        if quoted and re.search(r"""[^\w\s/+.$%*@?|:,=()[\]{}'"\\-]|[^\x00-\x7f]""", value):
            raise ValueError(f'{override}: a value with such letters needs quotes: "{quoted}"') from error
        raise ValueError(f"{override}: cannot be read as KEY=VALUE; check its brackets and quotes") from error
