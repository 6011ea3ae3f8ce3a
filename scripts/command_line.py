"""From a composed Hydra config to checked plain values, and from errors to one line on the terminal."""

import dataclasses
import difflib
import hashlib
import inspect
import json
import os
import re
import socket
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from tqdm import tqdm

from sppnet.names import printable

# Threads that spin while they wait for each other take the cores from loader processes and other programs: on two busy
# cores, training fell from 540 to 16 images/s with spinning, to 390 without. Read when torch is loaded, and inherited.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CONFIGS = Path(__file__).parent.parent / "configs"

# What changes the outcome of a run, and so names its directory.
OUTCOME = ("backbone", "pooling", "hidden", "sizes", "data", "recipe", "seed")


def _usual_warmup(epochs: Any) -> float:
    from sppnet.classify.recipe import usual_warmup

    return usual_warmup(epochs)


# In configs/recipe/fast.yaml: a default that also fits short runs. A value that is typed takes its place.
OmegaConf.register_new_resolver("usual_warmup", _usual_warmup, replace=True)


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
        raise ValueError(f"{prefix}{missing[0]}: missing; give it as {prefix}{missing[0]}=VALUE")
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


def run_directory(config: DictConfig) -> tuple[Path, dict[str, Any]]:
    """Where a run lives, and those parts of its config that decide that: nothing of the time or the machine."""
    from sppnet.records import without_folders  # takes as long to import as torch

    outcome = plain(OmegaConf.masked_copy(config, list(OUTCOME)))
    digest = content_hash({**outcome, "data": without_folders(outcome["data"])})
    name = str(config.name or _default_name(config))
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name={name}: may hold letters, digits, dots, dashes and underscores only")
    return Path(config.run or Path(config.runs) / f"{name}-seed{config.seed}-{digest}"), outcome


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


def claim_run_directory(run: Path, outcome: dict[str, Any]) -> None:
    """Writes config.yaml into a new run directory; in one that is there, makes sure that it is of the same run.

    Raises ValueError naming the first key that differs, and for a folder that holds something other than a run.
    """
    from sppnet.files import atomic_file
    from sppnet.folders import listing
    from sppnet.records import read_run_config, without_folders

    # Listed before config.yaml is read: another process of this run may be writing it, and more after it.
    others = _other_files(run)
    there = read_run_config(run)
    if there is None:
        if others:
            raise ValueError(f"{run}: found {listing(others)}, expected a new folder or a run directory")
        if outcome["data"].get("root"):  # evaluate.py may be called from another folder
            outcome = {**outcome, "data": {**outcome["data"], "root": os.path.abspath(outcome["data"]["root"])}}
        with atomic_file(run / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(outcome)).encode())
        return
    old, new = (_flat({**config, "data": without_folders(config["data"])}) for config in (there, outcome))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"{run}: holds another run: {key} is {old.get(key)} there and {new.get(key)} here; "
                "give another run=PATH, or leave it out"
            )


def _other_files(run: Path) -> list[str]:
    """What lies in a folder, hidden and temporary files aside."""
    from sppnet.files import is_temporary

    if run.exists() and not run.is_dir():
        raise ValueError(f"{run}: found a file, expected a new folder or a run directory")
    names = [path.name for path in run.iterdir()] if run.is_dir() else []
    return sorted(name for name in names if not name.startswith(".") and not is_temporary(name))


@contextmanager
def sole_training(run: Path) -> Iterator[None]:
    """Keeps other processes from training in the same directory at the same time. Raises ValueError naming the holder.

    The lock ends with the process, however that dies. Removes the temporary files of processes that were killed there.
    """
    import fcntl  # not on Windows

    from sppnet.files import remove_stale_files

    # The file stays: another process might hold it open, and lock what has no name any more.
    with (run / "lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: children would inherit it and outlive us
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise ValueError(
                f"{run}: {file.read() or 'another process'} trains here; wait for it, or give another run=PATH"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{file.name}: {error.strerror}; see to it yourself that one process trains here", stacklevel=3
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},")
        file.flush()
        for folder in (run, run / "checkpoints"):
            remove_stale_files(folder)
        try:
            yield
        finally:
            file.truncate(0)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What is wrong with the command becomes one line on stderr and exit code 2.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    try:
        yield
    except Exception as error:
        if _wants_traceback() or not _can_be_mended(error):
            raise
        print(f"error: {printable(_one_line(error))}", file=sys.stderr)
        sys.exit(2)


def run_main(main: Callable[[], Any]) -> None:
    """Calls a function made by `hydra.main`."""
    if not _wants_traceback():
        # Hydra prints errors over many lines, unless it is told to raise them. Children inherit what it is told.
        os.environ |= {"HYDRA_FULL_ERROR": "1", "SPPNET_ONE_LINE": "1"}
    # Launchers such as submitit start jobs from elsewhere, where this folder is not on the path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with one_line_errors():
        main()


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and "SPPNET_ONE_LINE" not in os.environ


def _one_line(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = error.options or sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
        return f"{group}={choice}: must be one of {', '.join(options)}"
    if isinstance(error, HydraException) and (match := re.match(r"Could not override '([\w.]+)'", str(error))):
        section, _, key = match[1].rpartition(".")
        keys = _keys(section)
        if not keys:
            return f"{section}: no such section; {_allowed(section, sorted(_keys('')))}"
        if key in keys:
            return f"{match[1]}: the chosen {section} has no such key"
        return f"{match[1]}: no such key; {_allowed(key, sorted(keys))}"
    if isinstance(error, HydraException) and (
        match := re.search(r"parsing override '(.*)'\nmissing EQUAL", str(error))
    ):
        return f"{match[1]}: must be KEY=VALUE"
    if isinstance(error, yaml.YAMLError):
        return " ".join(line.strip() for line in str(error).splitlines())
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return " ".join(line.strip() for line in str(error).splitlines()[:2])
    if str(error).startswith("Caught ") and "Original Traceback" in str(error):  # by torch, in a loader process
        return re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", str(error), flags=re.MULTILINE)[-1].strip()
    return str(error)


def _keys(section: str) -> set[str]:
    """What stands in a section of the configurations, whichever is chosen; "": in their roots."""
    parts = [OmegaConf.load(file) for file in (CONFIGS / section).glob("*.yaml")]
    if section:
        parts += [OmegaConf.select(OmegaConf.load(file), section) for file in CONFIGS.glob("*.yaml")]
    keys = {str(key) for part in parts if isinstance(part, DictConfig) for key in part}
    groups = set() if section else {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    return (keys | groups) - {"defaults", "hydra"}


def in_sweep() -> bool:
    """Whether this job is one of several (-m)."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


@contextmanager
def one_line_job(after_interrupt: str) -> Iterator[None]:
    """Around a job that Hydra runs: as `one_line_errors`, without Hydra's own words about it.

    In a sweep errors pass, so that Hydra runs the other jobs and says which one failed.
    """
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


def _can_be_mended(error: Exception) -> bool:
    """Whether an error speaks of what the user gave, rather than of the code."""
    # Lightning's, for a GPU where there is none, say; by name, because importing Lightning takes seconds.
    misconfigured = type(error).__name__ == "MisconfigurationException"
    return misconfigured or isinstance(
        error, (ValueError, OSError, yaml.YAMLError, OmegaConfBaseException, HydraException)
    )
