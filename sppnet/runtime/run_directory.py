"""Run directories: their configuration, their checkpoint, and who may train in them."""

import hashlib
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from sppnet.runtime.names import first_line
from sppnet.runtime.rules import (
    COUNT,
    INDEX,
    POSITIVE,
    SIDES,
    TEXT,
    Rule,
    check_plain,
    check_section,
    read_text,
)

_MAX_CONFIG_BYTES = 100_000  # a second of reading YAML


_CONFIG = {
    "": {"hidden": COUNT, "seed": INDEX},
    "backbone": {"architecture": TEXT},
    "pooling": {"levels": SIDES},
    "sizes": {},
    "data": {"source": TEXT},
    "recipe": {"epochs": COUNT, "batch_size": COUNT, "learning_rate": POSITIVE},
}
_CONFIG_OPTIONS = {
    "backbone": {"name": TEXT, "width": POSITIVE},
    "sizes": {"cycle": SIDES, "uniform": SIDES},
    "data": {"root": Rule("null or text", lambda value: value is None or isinstance(value, str))},
}


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, of which nine lines can make a billion entries."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("holds an alias (*name)")
        return super().compose_node(parent, index)


def read_run_config(run: Path) -> dict[str, Any] | None:
    """The config.yaml of a run directory, None where there is none. Runs no code.

    Raises ValueError, naming the file, if it is damaged or holds other things.
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
    except Exception as error:  # the library fails on hostile files in a dozen ways
        raise ValueError(f"{file}: not the configuration of a run ({first_line(error)})") from error
    return dict(config)


def _check_config(config: dict[str, Any]) -> None:
    for name, rules in _CONFIG.items():
        section = config.get(name) if name else config
        if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
            raise ValueError(f"{name} is not a section")
        check_section(section, rules, _CONFIG_OPTIONS.get(name, {}), f"{name}." if name else "")
    sizes = config["sizes"]
    if (sizes.get("cycle") is None) == (sizes.get("uniform") is None):
        raise ValueError("sizes must have either cycle or uniform")


def checkpoint_file(run: Path) -> Path:
    """The last checkpoint of a run directory, or the checkpoint itself."""
    return run / "checkpoints" / "last.ckpt" if run.is_dir() else run


def checkpoint_digest(run: Path) -> str:
    """SHA-256 of the last checkpoint: what was tested, and whether it has changed since."""
    with checkpoint_file(run).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_folders(data: dict[str, Any]) -> dict[str, Any]:
    """A data section with its root reduced to the last folder: names a run, whose data may be elsewhere later.

    It does not tell data sets apart: checkpoints and scores hold fingerprints for that.
    """
    return {**data, "root": Path(data["root"]).name} if data.get("root") else data


def claim_run_directory(run: Path, outcome: dict[str, Any]) -> None:
    """Writes config.yaml into a new run directory; in one that is there, makes sure that it is of the same run.

    Raises ValueError naming the first key that differs, and for a folder that holds something other than a run.
    """
    from sppnet.runtime.files import atomic_file
    from sppnet.runtime.names import listing
    from sppnet.runtime.run_directory import read_run_config, without_folders

    # Listed before config.yaml is read: another process of this run may be writing it, and more after it.
    others = _other_files(run)
    there = read_run_config(run)
    if there is None:
        if others:
            raise ValueError(f"{run}: found {listing(others)}, expected a new folder or a run directory")
        if outcome["data"].get("root"):  # evaluate.py may be called from another folder
            outcome = {**outcome, "data": {**outcome["data"], "root": os.path.abspath(outcome["data"]["root"])}}
        with atomic_file(run / "config.yaml") as file:
            file.write(yaml.safe_dump(outcome, sort_keys=False, allow_unicode=True).encode())
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
    from sppnet.runtime.files import is_temporary

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

    from sppnet.runtime.files import remove_stale_files

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


@contextmanager
def removed_if_nothing_is_saved(run: Path, *, is_new: bool, folder_is_new: bool) -> Iterator[None]:
    """Around training that holds the lock of `run`: an error before the first checkpoint leaves no new directory."""
    try:
        yield
    except Exception:
        if is_new and not any(run.glob("checkpoints/*.ckpt")):
            shutil.rmtree(run, ignore_errors=True)  # the error itself matters more
            if folder_is_new:
                with suppress(OSError):  # other runs are in it by now
                    run.parent.rmdir()
        raise


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}
