"""Run directories: claiming and locking one, its configuration and its checkpoint."""

import fcntl  # not on Windows
import hashlib
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from sppnet.runtime.files import atomic_file, check_local, is_temporary, remove_stale_files
from sppnet.runtime.names import first_line, listing
from sppnet.runtime.published import WEIGHTS_FILE
from sppnet.runtime.rules import (
    COUNT,
    NAMES,
    POSITIVE,
    SEED,
    SIDES,
    TEXT,
    Rule,
    check_plain,
    check_section,
    read_text,
)

_MAX_CONFIG_BYTES = 100_000  # about a second of reading YAML

_COUNT_OR_NULL = Rule(f"null or {COUNT.words}", lambda value: value is None or COUNT.holds(value))

# The rules of config.yaml by section; "" is the top level. _CONFIG_OPTIONS are rules of keys that may be missing.
_CONFIG = {
    "": {"hidden": _COUNT_OR_NULL, "seed": SEED},
    "backbone": {"architecture": TEXT},
    "pooling": {"levels": SIDES},
    "sizes": {},
    "data": {"source": TEXT},
    "recipe": {"epochs": COUNT, "batch_size": COUNT, "learning_rate": POSITIVE},
}
_TEXT_OR_NULL = Rule("null or text", lambda value: value is None or isinstance(value, str))
_TABLES = ("file", "val_file")  # keys of a data section that are files
_CONFIG_OPTIONS = {
    "backbone": {"name": TEXT, "width": POSITIVE},
    "sizes": {"cycle": SIDES, "uniform": SIDES, "every": TEXT, "multiple": COUNT},
    "data": {**dict.fromkeys(("root", *_TABLES), _TEXT_OR_NULL), "classes": NAMES},
}
# Keys that runs from before they existed do not have: null must be the same, or names of runs would change and tables
# would group them apart.
_LATER_KEYS = ("classes", "class_pattern", "train_list", "val_list")


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml comes without types
    """Reads YAML without aliases, with which nine lines can make a billion entries."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("holds an alias (*name)")
        return super().compose_node(parent, index)


def read_run_config(run: Path) -> dict[str, Any] | None:
    """Reads the config.yaml of a run directory, without running code; None if there is none.

    Raises ValueError, naming the file, if it is damaged or is not the configuration of a run.
    """
    file = run / "config.yaml"
    if not file.is_file():
        return None
    try:
        config = yaml.load(read_text(file, _MAX_CONFIG_BYTES), Loader=_PlainLoader)
        check_plain(config)
        _check_config(config)
    except OSError:
        raise
    except Exception as error:  # YAML raises a dozen kinds of errors for hostile files
        raise ValueError(f"{file}: not the configuration of a run ({first_line(error)})") from error
    return dict(config)


def _check_config(config: dict[str, Any]) -> None:
    """Raises ValueError for a missing or wrong value."""
    for name, rules in _CONFIG.items():
        section = config.get(name) if name else config
        if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
            raise ValueError(f"{name} is not a section")
        check_section(section, rules, _CONFIG_OPTIONS.get(name, {}), f"{name}." if name else "")
    sizes = config["sizes"]
    if (sizes.get("cycle") is None) == (sizes.get("uniform") is None):
        raise ValueError("sizes must have either cycle or uniform")


def sizes_in_words(sizes: Mapping[str, Any]) -> list[int | str]:
    """Returns the sizes of training for names and tables: [224, 180], or ["random", 180, 224, "per batch"].

    Args:
        sizes: the section of a configuration, or the fields of `sppnet.classify.schedules.Sizes`.
    """
    words: list[int | str] = list(sizes.get("cycle") or ["random", *sizes["uniform"]])
    if sizes.get("multiple", 1) != 1:
        words.append(f"multiples of {sizes['multiple']}")
    if sizes.get("every", "epoch") != "epoch":
        words.append(f"per {sizes['every']}")
    return words


def checkpoint_file(run: Path) -> Path:
    """The last checkpoint of a run directory, the weights in a published folder, or the checkpoint itself."""
    if not run.is_dir():
        return run
    weights = run / WEIGHTS_FILE
    return weights if weights.is_file() else run / "checkpoints" / "last.ckpt"


def run_of(path: Path) -> Path:
    """Returns the run directory that describes a network: RUN for a checkpoint RUN/checkpoints/FILE, or the path."""
    return path.parent.parent if path.is_file() and path.parent.name == "checkpoints" else path


def is_published(run: Path) -> bool:
    """Whether a path is the folder of a published network, whose files are all that should be in it."""
    return (run / WEIGHTS_FILE).is_file()


def folder_beside(run: Path, name: str) -> Path:
    """Returns where files of a kind go: NAME in a run directory, FILE.NAME beside a checkpoint or published folder."""
    return run / name if run.is_dir() and not is_published(run) else run.with_name(f"{run.name}.{name}")


def checkpoint_digest(run: Path) -> str:
    """SHA-256 of the last checkpoint: shows which one was tested, and whether it has changed since."""
    return file_digest(checkpoint_file(run))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_folders(data: dict[str, Any]) -> dict[str, Any]:
    """A data section with its places reduced to the last folder, or folder and file: the data of a run may be moved.

    Different data sets can look the same here; checkpoints and scores have fingerprints to tell them apart.
    """
    compared = {key: value for key, value in data.items() if value is not None or key not in _LATER_KEYS}
    if compared.get("root"):
        compared["root"] = Path(compared["root"]).name
    for key in _TABLES:
        if compared.get(key):  # with the folder: many tables have the name train.csv
            compared[key] = "/".join(Path(os.path.abspath(compared[key])).parts[-2:])
    # The order in which classes are given makes no difference to the data.
    return compared if "classes" not in compared else {**compared, "classes": sorted(compared["classes"])}


def with_absolute_places(data: dict[str, Any]) -> dict[str, Any]:
    """A data section whose folders and files are absolute; addresses such as s3://bucket/store stay."""
    places = {key: data[key] for key in ("root", *_TABLES) if isinstance(data.get(key), str) and "://" not in data[key]}
    return {**data, **{key: os.path.abspath(place) for key, place in places.items()}}


class RunDirectory:
    """The folder of one run: config.yaml, checkpoints/, tensorboard/, scores/, result.json.

    Args:
        path: the folder.
        config: the settings that decide the outcome of the run, as plain values; config.yaml holds them.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config
        self._created: list[Path] = []  # folders that `claim` made, the innermost first

    def claim(self) -> None:
        """Writes config.yaml into a new directory; checks that an existing one belongs to the same run.

        Raises ValueError naming the first key that differs, and for a folder that holds something other than a run.
        """
        check_local(self.path)
        # Listed before config.yaml is read: another process of this run may be writing it, and more after it.
        other_files = _other_files(self.path)
        existing = read_run_config(self.path)
        if existing is not None:
            self._check_same_run(existing)
            return
        if other_files:
            raise ValueError(f"{self.path}: found {listing(other_files)}, expected a new folder or a run directory")

        self._created = [folder for folder in (self.path, self.path.parent) if not folder.exists()]
        # Absolute, as evaluate.py may be called from another folder.
        config = {**self.config, "data": with_absolute_places(self.config["data"])}
        with atomic_file(self.path / "config.yaml") as file:
            file.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())

    def _check_same_run(self, existing: dict[str, Any]) -> None:
        old, new = (flat({**config, "data": without_folders(config["data"])}) for config in (existing, self.config))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise ValueError(
                    f"{self.path}: holds another run: {key} is {old.get(key)} there and {new.get(key)} here; "
                    "give another run=PATH, or leave it out"
                )

    @contextmanager
    def training(self) -> Iterator[None]:
        """Locks the directory for one training process; removes a new directory if an error leaves no checkpoint in it.

        The lock ends with the process, however that dies. Temporary files of processes that were killed in this
        directory are removed.

        Raises ValueError naming the process that holds the lock.
        """
        with self._lock():
            for folder in (self.path, self.path / "checkpoints"):
                remove_stale_files(folder)
            try:
                yield
            except Exception:
                self._remove_if_nothing_is_saved()
                raise

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # The file stays: another process might hold it open, and would lock a file that no longer has a name.
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: children would inherit it and outlive us
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                raise ValueError(
                    f"{self.path}: {file.read() or 'another process'} trains here; wait for it, or give another "
                    "run=PATH"
                ) from error
            except OSError as error:
                warnings.warn(
                    f"{file.name}: {error.strerror}; see to it yourself that one process trains here", stacklevel=5
                )

            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _remove_if_nothing_is_saved(self) -> None:
        if self.path not in self._created or any(self.path.glob("checkpoints/*.ckpt")):
            return
        shutil.rmtree(self.path, ignore_errors=True)  # the error that is being raised matters more
        for folder in self._created[1:]:
            with suppress(OSError):  # other runs are in it by now
                folder.rmdir()


def _other_files(run: Path) -> list[str]:
    """Names of the files in a folder, without hidden and temporary ones."""
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run}: found a file, expected a new folder or a run directory")
    names = [path.name for path in run.iterdir()] if run.is_dir() else []
    return sorted(name for name in names if not name.startswith(".") and not is_temporary(name))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, with keys such as "recipe.epochs"."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}".lstrip(".")).items()}
