"""From the command line to a composed configuration, and from that to checked plain values."""

import argparse
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from tqdm import tqdm

from sppnet.classify.recipe import default_warmup
from sppnet.commands.errors import (
    CONFIGS,
    allowed_keys,
    before_job_error,
    check_grammar,
    choices,
    configuration_errors,
    is_before_job,
    no_such_option,
    one_line,
    one_line_errors,
    wants_traceback,
)
from sppnet.commands.startup import interrupt_by_exception
from sppnet.runtime.names import printable
from sppnet.runtime.run_directory import RunDirectory, without_folders


def groups_of(config_name: str) -> dict[str, list[str]]:
    """The groups that a command's configuration is composed of, each with its choices."""
    groups: dict[str, list[str]] = {}
    for entry in yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8"))["defaults"]:
        if isinstance(entry, str):
            groups |= groups_of(entry) if entry != "_self_" else {}
        else:
            groups |= {group: choices(group) for group in entry if choices(group)}
    return groups


# For the help of each command; Hydra's $APP_CONFIG_GROUPS lists the groups of all commands.
OmegaConf.register_new_resolver(
    "groups_of",
    lambda name: "\n".join(f"{group}: {', '.join(found)}" for group, found in groups_of(name).items()),
    replace=True,
)

# What changes the outcome of a run, and so names its directory.
OUTCOME = ("backbone", "pooling", "hidden", "sizes", "data", "recipe", "seed")


# In configs/recipe/fast.yaml: a default that also fits short runs. A value that is typed takes its place.
OmegaConf.register_new_resolver("default_warmup", default_warmup, replace=True)


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
            raise ValueError(f"{prefix}{key}: no such key; {allowed_keys(prefix, key, list(parameters), section)}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in section]
    if missing:
        raise ValueError(f"{prefix}{missing[0]}: missing; give it as {prefix}{missing[0]}=VALUE")
    hints = _type_hints(target)
    return {str(key): _converted(section, str(key), hints[str(key)], prefix) for key in section}


def _converted(section: DictConfig, key: str, hint: Any, prefix: str) -> Any:
    """The value of one key as plain Python of the type that `hint` says."""
    schema = OmegaConf.structured(dataclasses.make_dataclass("Section", [(key, hint)]))
    try:
        merged = OmegaConf.merge(schema, OmegaConf.masked_copy(section, [key]))
        value = OmegaConf.to_container(merged, throw_on_missing=True)[key]  # type: ignore[call-overload,index]
    except MissingMandatoryValue as error:
        raise ValueError(f"{prefix}{error.full_key}: missing; give it as {prefix}{error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{prefix}{error.full_key or key}: {str(error.msg).splitlines()[0]}") from error
    if value == "":
        raise ValueError(f"{prefix}{key}: empty; give it as {prefix}{key}=VALUE, or leave it out")
    return value


def bound_choice(
    section: Any, key: str, choices: dict[str, Callable[..., Any]], prefix: str
) -> tuple[str, dict[str, Any]]:
    """The choice that `section[key]` names, and the other keys as checked arguments of it."""
    if not isinstance(section, DictConfig) or key not in section:
        raise ValueError(f"{prefix}{key}: missing; must be one of {', '.join(choices)}")
    choice = section[key]
    if not isinstance(choice, str) or choice not in choices:
        raise ValueError(f"{prefix}{key}={choice}: must be one of {', '.join(choices)}")
    options = OmegaConf.masked_copy(section, [str(name) for name in section if name != key])
    return choice, bound(options, choices[choice], prefix)


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        return typing.get_type_hints(target.__init__)
    return typing.get_type_hints(target)


def run_directory(config: DictConfig) -> RunDirectory:
    """Returns the directory of the run that a training configuration describes.

    Its name depends only on the settings that decide the outcome, not on the time or the machine.
    """
    outcome = plain(OmegaConf.masked_copy(config, list(OUTCOME)))
    digest = content_hash({**outcome, "data": without_folders(outcome["data"])})
    name = str(config.name or _default_name(config))
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name={name}: may hold letters, digits, dots, dashes and underscores only")
    return RunDirectory(Path(config.run or Path(config.runs) / f"{name}-seed{config.seed}-{digest}"), outcome)


def plain(config: DictConfig) -> dict[str, Any]:
    return typing.cast("dict[str, Any]", OmegaConf.to_container(config))


def content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _default_name(config: DictConfig) -> str:
    network = re.sub(r"[^\w.-]+", "-", config.backbone.get("name", config.backbone.architecture))
    levels = config.pooling.levels
    pyramid = "none" if levels is None else f"spp{sum(n * n for n in levels)}"
    sizes = "-".join(str(side) for side in config.sizes.get("cycle") or ["random", *config.sizes.uniform])
    return f"{network}-{pyramid}-{sizes}-{config.data.source}"


def run_main(main: Callable[[], Any]) -> None:
    """Calls a function made by `hydra.main`. Whatever is wrong with the command becomes one line and exit code 2."""
    if not wants_traceback():
        # Hydra prints errors over many lines, unless it is told to raise them. Children inherit what it is told.
        os.environ |= {"HYDRA_FULL_ERROR": "1", "SPPNET_ONE_LINE": "1"}
    with one_line_command():
        sys.argv[1:] = checked_arguments(sys.argv[1:])
        try:
            main()
        except Exception as error:
            if wants_traceback() or not is_before_job(error):
                raise
            raise before_job_error(error) from error


@contextmanager
def one_line_command() -> Iterator[None]:
    """Around a whole command: as `one_line_errors`, and Ctrl-C becomes one line and exit code 130."""
    try:
        with one_line_errors():
            yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def checked_arguments(arguments: list[str]) -> list[str]:
    """The words of the command line, options first, with ~/ spelled out.

    Raises ValueError for an option that does not exist and for an override that Hydra cannot parse.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if unknown:
        following = arguments[arguments.index(unknown[0]) + 1 :]
        raise ValueError(no_such_option(unknown[0], next((word for word in following[:1] if "=" not in word), None)))

    if known.experimental_rerun is not None:
        raise ValueError("--experimental-rerun: not supported, because it runs code from the file; give the overrides")
    if known.config_path is not None and not os.path.isabs(known.config_path):
        raise ValueError(
            f"--config-path={known.config_path}: must be an absolute folder, which replaces the configurations of "
            "sppnet; --config-dir=FOLDER adds yours to them"
        )
    options = list(arguments)
    for override in known.overrides:
        options.remove(override)
    overrides = [with_home(override) for override in known.overrides]
    for override in overrides:
        check_grammar(override)
    return [*options, *overrides]


def with_home(override: str) -> str:
    """An override with ~/ spelled out: bash leaves that of data.root=~/images to the command, and Hydra refuses it."""
    return re.sub(r"(?<=[=,[])~(?=[/,\]]|$)", str(Path.home()), override)


def resolved(config: DictConfig) -> DictConfig:
    """The configuration without interpolations, and with ~/ spelled out. Raises ValueError for what has no value."""
    with configuration_errors():
        return OmegaConf.create(_without_tilde(OmegaConf.to_container(config, resolve=True)))


def _without_tilde(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tilde(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_tilde(inner) for inner in value]
    return os.path.expanduser(value) if isinstance(value, str) and re.match("~(/|$)", value) else value


class SweepCheck(Callback):
    """Checks all jobs of a sweep (-m) before the first one runs, where Hydra's basic sweeper lists them.

    Args:
        command: the module whose `check` takes the configuration of a job, and raises what is wrong with it.
    """

    def __init__(self, command: str) -> None:
        self.command = command

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # A sweeper such as Optuna's chooses each job by the results of those before.
        if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
            return
        try:
            with one_line_errors():
                check_jobs(config, str(kwargs["config_name"]), importlib.import_module(self.command).check)
        except Exception as error:
            traceback.print_exception(error)  # because Hydra only warns of errors in here, and goes on
            sys.exit(1)


def check_jobs(config: DictConfig, config_name: str, check: Callable[[DictConfig], None]) -> None:
    """Composes and checks every job of a sweep. Raises ValueError naming the overrides of the first wrong one."""
    words = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    words += config.hydra.overrides.task
    overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
    jobs = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
    if not jobs:
        raise ValueError(f"{' '.join(words)}: a sweep of no jobs; a pattern or range in it matches nothing")
    for number, job in enumerate(jobs, start=1):
        try:
            with configuration_errors():
                check(resolved(compose(config_name, list(job))))
        except Exception as error:
            raise ValueError(f"{one_line(error)} (job {number} of {len(jobs)}: {' '.join(job)})") from error


def in_sweep() -> bool:
    """Whether this job is one of several (-m)."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


@contextmanager
def one_line_job(after_interrupt: str) -> Iterator[None]:
    """Around a job that Hydra runs: as `one_line_errors`, without Hydra's own words about it.

    In a sweep errors pass, so that Hydra runs the other jobs and says which one failed.
    """
    interrupt_by_exception()
    # tqdm writes above a progress bar, if there is one.
    warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {printable(str(message))}", file=sys.stderr)
    try:
        if in_sweep():
            yield
        else:
            with one_line_errors():
                yield
    except KeyboardInterrupt:
        print(f"interrupted; {after_interrupt}", file=sys.stderr)
        sys.exit(130)
