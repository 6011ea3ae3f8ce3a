"""From an error to one line on the terminal that names the key, the value and what is allowed."""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet.runtime.names import printable

_PACKAGED = Path(__file__).parents[1] / "configs"  # only where the package was installed from a wheel
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns an error that the user can correct into one line on stderr and exit code 2.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    try:
        yield
    except Exception as error:
        if wants_traceback() or not is_user_error(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def configuration_errors() -> Iterator[None]:
    """Around code that only reads the configuration: whatever it raises, a value of the user's is the cause.

    Raises ValueError in place of errors that `is_user_error` would take for bugs, such as OverflowError.
    """
    try:
        yield
    except Exception as error:
        if is_user_error(error):
            raise
        words = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"the configuration cannot be used ({words}); HYDRA_FULL_ERROR=1 shows where that happens"
        ) from error


def wants_traceback() -> bool:
    """Whether the user has set HYDRA_FULL_ERROR=1. Commands set it too, together with SPPNET_ONE_LINE."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and "SPPNET_ONE_LINE" not in os.environ


def is_user_error(error: Exception) -> bool:
    """Whether an error is caused by the user's input, files or machine rather than by a bug."""
    # Lightning's and torch's, by name: importing them takes seconds.
    names = {"MisconfigurationException", "OutOfMemoryError"}
    kinds = (ValueError, OSError, MemoryError, yaml.YAMLError, OmegaConfBaseException, HydraException)
    return type(error).__name__ in names or isinstance(error, kinds) or "can't allocate memory" in str(error)


def is_before_job(error: Exception) -> bool:
    """Whether Hydra had not called the command's function yet, and so was reading the configuration."""
    return all(frame.f_code.co_name != "run_job" for frame, _ in traceback.walk_tb(error.__traceback__))


def one_line(error: Exception) -> str:
    """What to say about an error, without line breaks and control characters."""
    words = " ".join(line.strip() for line in _words(error).splitlines())
    return printable(words)


def _words(error: Exception) -> str:
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(error)
    if isinstance(error, HydraException) and (match := re.match(r"Could not override '([\w./@]+)'", text)):
        return no_such_key(match[1])
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _of_the_configuration(error)
    if isinstance(error, yaml.YAMLError):
        return f"cannot be read as YAML: {text}"
    if isinstance(error, MemoryError) and not text:
        return "out of memory"
    if text.startswith("Caught ") and "Original Traceback" in text:  # by torch, in a loader process
        return re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1].strip()
    return text or type(error).__name__


def _of_the_configuration(error: HydraException | OmegaConfBaseException) -> str:
    """The first lines of an error of Hydra or OmegaConf, with the key that it is about and its cause."""
    text = " ".join(line.strip() for line in str(getattr(error, "msg", None) or error).splitlines()[:2])
    if key := getattr(error, "full_key", None):
        return f"{key}: {text.split(' full_key: ')[0]}"
    cause = error.__cause__
    return f"{text}: {str(cause).splitlines()[0]}" if text.startswith("Error merging override") and cause else text


def before_job_error(error: Exception) -> ValueError:
    """The same error in one line that names the override which caused it, if there is one."""
    words = one_line(error) if is_user_error(error) else f"{type(error).__name__}: {one_line(error)}"
    named = [word for word in given_overrides() if word in words or word.lstrip("+~").partition("=")[0] in words]
    guilty = None if named else next((word for word in given_overrides() if _fails_alone(word, error)), None)
    if guilty is None:
        return ValueError(words)
    options = choices(guilty.lstrip("+~").partition("=")[0])
    return ValueError(f"{guilty}: must be one of {', '.join(options)}" if options else f"{guilty}: {words}")


def _fails_alone(override: str, error: Exception) -> bool:
    try:
        _composed([override])
    except Exception as other:
        return type(other) is type(error)
    return False


def _no_such_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = error.options or choices(group)
    name = f"{group or '--config-name'}={choice}"
    line = f"{name}: must be one of {', '.join(options)}"
    if group == "backbone" and _is_timm_model(choice):
        return f"{line}; for the model of timm: backbone=timm backbone.name={choice}"
    close = difflib.get_close_matches(choice, options, n=1)
    return f"{line}; did you mean {close[0]}?" if close else line


def _is_timm_model(name: str) -> bool:
    import timm  # takes seconds

    return bool(timm.is_model(name))


def no_such_key(key: str) -> str:
    """What to say about an override of a key that this command's configuration does not have."""
    config = _configuration_here()
    if key in config.hydra.runtime.choices:
        return f"{key}: must be one of {', '.join(choices(key))}"
    section, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(config, section) if section else config
    if parent is None:
        return f"{section}: no such section; {_allowed(section, [k for k in map(str, config) if k != 'hydra'])}"
    if not isinstance(parent, DictConfig):
        return f"{key}: {section} is a value, not a section"

    having = (
        [] if not section else [choice for choice in choices(section) if leaf in _section_of_choice(section, choice)]
    )
    if having:
        chosen = OmegaConf.select(config, f"hydra.runtime.choices.{section}")
        return f"{key}: {section}={chosen} has no such key; {', '.join(f'{section}={choice}' for choice in having)} has"
    keys = dotted_keys(config.hydra, "hydra.") if key.startswith("hydra.") else dotted_keys(config)
    return f"{key}: no such key; {_allowed(key, keys)}"


def no_such_option(option: str, value: str | None) -> str:
    """What to say about --epochs=3, or about "--epochs 3": keys are written without dashes."""
    key, equals, rest = option.lstrip("-").partition("=")
    meant = closest_key(key, dotted_keys(_configuration_here())) if key else None
    if option.startswith("--") and meant:
        return f"{option}: keys have no dashes; did you mean {meant}={rest if equals else value or 'VALUE'}?"
    return f"{option}: no such option; keys are given as KEY=VALUE, without dashes; --help shows examples"


def check_grammar(override: str) -> None:
    """ValueError, with words to type, for an override that Hydra cannot parse."""
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


def closest_key(key: str, keys: Iterable[str]) -> str | None:
    """Which of the dotted `keys` was probably meant, or None.

    By the same name in another section, by spelling, by one of its words (rate), by initials (lr: learning_rate).
    """
    everywhere = list(keys)
    section, _, leaf = key.rpartition(".")
    here = [other for other in everywhere if other.rpartition(".")[0] == section]
    named = {other.rpartition(".")[2]: other for other in (*reversed(everywhere), *here)}
    if leaf in named:
        return named[leaf]

    siblings = {other.rpartition(".")[2]: other for other in here}
    if close := difflib.get_close_matches(leaf, siblings, n=1):
        return siblings[close[0]]
    for names in (siblings, named):
        for name, other in names.items():
            words = name.split("_")
            if leaf in words or (len(words) > 1 and leaf == "".join(word[:1] for word in words)):
                return other
    close = difflib.get_close_matches(leaf, named, n=1)
    return named[close[0]] if close else None


def _allowed(key: str, keys: Sequence[str]) -> str:
    """What the user probably meant by `key`, or else all keys of that section."""
    section = key.rpartition(".")[0]
    close = closest_key(key, keys)
    if close is not None:
        return f"did you mean {close.removeprefix(f'{section}.') if section else close}?"
    here = [other.rpartition(".")[2] for other in keys if other.rpartition(".")[0] == section]
    return f"allowed: {', '.join(here)}"


def allowed_keys(prefix: str, key: str, names: Sequence[str], section: DictConfig) -> str:
    """What to say where `section` has a `key` that is not one of `names`."""
    nested = [] if prefix else [other for other in dotted_keys(section) if "." in other]
    return _allowed(f"{prefix}{key}", [*(f"{prefix}{name}" for name in names), *nested])


def dotted_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """The keys of a configuration and of its sections, Hydra's own left out."""
    keys = []
    for name in map(str, config):
        if not prefix and name == "hydra":
            continue
        keys.append(f"{prefix}{name}")
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            keys += dotted_keys(node, f"{prefix}{name}.")
    return keys


def given_overrides() -> list[str]:
    return [word for word in sys.argv[1:] if "=" in word or word.startswith("~")]


def _configuration_here() -> DictConfig:
    """The configuration of this command with the groups chosen on its command line, as far as they exist."""
    chosen = [word for word in given_overrides() if choices(word.partition("=")[0])]
    try:
        return _composed(chosen)
    except Exception:  # a choice that does not exist, or several of a sweep
        return _composed([])


def _composed(overrides: list[str]) -> DictConfig:
    name = Path(sys.argv[0]).stem
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides, return_hydra_config=True)


def choices(group: str) -> list[str]:
    """The names of the files of a group, none if there is no such group; "": of the configurations of the commands."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _section_of_choice(group: str, choice: str) -> Any:
    """What a file of a group puts into the section of the same name."""
    file = CONFIGS / group / f"{choice}.yaml"
    config: Any = OmegaConf.load(file)
    return config.get(group, {}) if "@package _global_" in file.read_text(encoding="utf-8") else config
