"""Published networks: folders of weights, a description and a model card, here or on the Hugging Face Hub."""

import json
import os
import re
from pathlib import Path
from typing import Any

from sppnet.runtime.names import first_line
from sppnet.runtime.rules import COUNT, FRACTION, NAMES, SEED, TEXT, Rule, check_section, read_text

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"

_ADDRESS = re.compile(r"hf://([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
_MAX_CONFIG_BYTES = 1 << 24
_SOURCES = ("folder", "table", "caltech101", "imagenet", "prepared")
_CONFIG = {
    "network": Rule("a section", lambda value: isinstance(value, dict)),
    "weights": TEXT,  # SHA-256 of WEIGHTS_FILE
    "crop_side": COUNT,  # side in pixels of the crops that it was trained on
}
# How the images of the training were split: keys of its data section that hold no path of the publisher's machine, and
# are safe to take from a stranger. Addresses, patterns and lists are not recorded, and then none of the data is.
_DATA = {"source": Rule("one of " + ", ".join(_SOURCES), lambda value: value in _SOURCES), "fingerprint": TEXT}
_DATA_OPTIONS = {
    "val_fraction": FRACTION,
    **dict.fromkeys(("split_seed", "train_per_class", "test_per_class"), SEED),
    "classes": NAMES,
    **dict.fromkeys(("path_column", "label_column", "split_column"), TEXT),
}


def data_to_record(data: dict[str, Any], fingerprint: str | None) -> dict[str, Any] | None:
    """Returns what a published network records of its data, None if that would not name its split.

    Args:
        data: the data section of its run.
        fingerprint: of the data.
    """
    given = {key: value for key, value in data.items() if value is not None and key not in ("root", "file")}
    if fingerprint is None or given["source"] not in _SOURCES or given.keys() - {*_DATA, *_DATA_OPTIONS}:
        return None
    return {**given, "fingerprint": fingerprint}


def recorded_data(folder: Path) -> dict[str, Any] | None:
    """Returns how the images of a published network were split: a data section without a place, and a fingerprint.

    None if they are not recorded. Raises ValueError as `read_published`.
    """
    data = read_published(folder).get("data")
    return None if data is None else {key: value for key, value in data.items() if key in {*_DATA, *_DATA_OPTIONS}}


def _check_data(data: Any) -> None:
    if not isinstance(data, dict):
        raise ValueError("data must be a section")
    check_section(data, _DATA, _DATA_OPTIONS, "data.")


def read_published(folder: Path) -> dict[str, Any]:
    """Reads the description of a published network. Raises ValueError, naming the file, if it is none."""
    file = folder / CONFIG_FILE
    try:
        config = json.loads(read_text(file, _MAX_CONFIG_BYTES))
        if not isinstance(config, dict):
            raise ValueError("must be keys with values")
        check_section(config, _CONFIG, {})
        if config.get("data") is not None:
            _check_data(config["data"])
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file}: not the description of a published network ({first_line(error)})") from error
    return config


def is_hub_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address of the Hugging Face Hub, which begins with hf://."""
    return os.fspath(path).startswith("hf://")


def check_local(key: str, path: str) -> None:
    """Raises ValueError for an address of the Hub, where a command keeps files beside the network."""
    if is_hub_address(path):
        repository, revision = parse_hub_address(path)
        words = f"hf download {repository}{f' --revision {revision}' if revision else ''} --local-dir FOLDER"
        raise ValueError(f"{key}={path}: must be a folder on this machine; `{words}` makes one")


def parse_hub_address(address: str) -> tuple[str, str | None]:
    """Returns the repository OWNER/NAME of an address, and its revision. Raises ValueError for another form."""
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise ValueError(f"{address}: must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return found[1], found[2]


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Returns a path as it is, or the folder into which a network from the Hub was downloaded.

    Downloads description and weights of an address that begins with hf://, unless they are in the cache of
    huggingface_hub. Its environment variables apply, such as HF_TOKEN, HF_HOME and HF_HUB_OFFLINE=1.

    Raises ValueError for a malformed address, and if the network cannot be downloaded.
    """
    if not is_hub_address(path):
        return Path(path)
    address = os.fspath(path)
    repository, revision = parse_hub_address(address)

    from huggingface_hub import snapshot_download  # takes a second

    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # of a dozen kinds, from the network, the Hub, and the disk
        raise ValueError(f"{address}: cannot be downloaded ({first_line(error)})") from error
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{address}: holds no network of sppnet ({WEIGHTS_FILE} is missing)")
    return folder
