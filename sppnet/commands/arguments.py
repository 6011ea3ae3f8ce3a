"""The words of a command line: checked before Hydra reads them, with ~/ spelled out."""

import argparse
import re
import sys
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sppnet.commands.configs import check_experiments
from sppnet.commands.hints import no_such_option


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
