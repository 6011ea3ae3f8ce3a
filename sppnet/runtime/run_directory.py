"""Run directories: their configuration, their checkpoint, and who may train in them."""

import hashlib
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
