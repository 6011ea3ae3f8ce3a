"""What runs and evaluations leave behind: results and scores, whole or not at all, with where each number came from."""

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import yaml

from sppnet.files import atomic_file
from sppnet.metrics import wilson_interval

RESULT_FILE = "result.json"

# Part of the identity of saved scores. Raise it when the scores of an unchanged protocol change: other paddings, other
# cells of a window, another resizing. Scores saved under another number are made again.
SCORING_RULES = 2
# Records may come from a stranger, so their size and values are checked.
_MAX_RESULT_BYTES = 64 << 20  # a history of thousands of epochs
_MAX_CONFIG_BYTES = 100_000  # a second of reading YAML


class _Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e15  # also no NaN


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1e15


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_count(entry) for entry in value)


def _is_history(value: Any) -> bool:
    epochs = value if isinstance(value, list) and value else [None]
    return all(isinstance(epoch, dict) and _POSITIVE.holds(epoch.get("images_per_second")) for epoch in epochs)


_TEXT = _Rule("text", lambda value: isinstance(value, str) and value != "")
_COUNT = _Rule("a whole number from 1", _is_count)
_INDEX = _Rule("a whole number from 0", lambda value: _is_count(value) or (type(value) is int and value == 0))
_POSITIVE = _Rule("a number above 0", lambda value: _is_number(value) and value > 0)
_FRACTION = _Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_SIDES = _Rule("null or a list of whole numbers from 1", lambda value: value is None or _are_counts(value))

# Keys that every record has, and others that some have.
_RESULT = {
    "top1_error": _FRACTION,
    **dict.fromkeys(("top1_wrong", "top5_wrong"), _INDEX),
    **dict.fromkeys(("n", "num_classes", "training_images"), _COUNT),
    "seconds": _Rule("a number from 0", lambda value: _is_number(value) and value >= 0),
    "hardware": _TEXT,
    "history": _Rule("a list of epochs with images_per_second", _is_history),
}
_RESULT_OPTIONS = {
    **dict.fromkeys(("network", "data", "protocol", "checkpoint", "validation_images"), _TEXT),
    "epochs": _COUNT,
}
_CONFIG = {
    "": {"hidden": _COUNT, "seed": _INDEX},
    "backbone": {"architecture": _TEXT},
    "pooling": {"levels": _SIDES},
    "sizes": {},
    "data": {"source": _TEXT},
    "recipe": {"epochs": _COUNT, "batch_size": _COUNT, "learning_rate": _POSITIVE},
}
_CONFIG_OPTIONS = {
    "backbone": {"name": _TEXT, "width": _POSITIVE},
    "sizes": {"cycle": _SIDES, "uniform": _SIDES},
    "data": {"root": _Rule("null or text", lambda value: value is None or isinstance(value, str))},
}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())


def read_result(run: Path) -> dict[str, Any] | None:
    """The result of a finished run, None for one that is not finished.

    Raises ValueError, naming the file, if it is damaged or holds other things.
    """
    path = run / RESULT_FILE
    if not path.is_file():
        return None
    try:
        result = json.loads(_read_text(path, _MAX_RESULT_BYTES))
        _check_plain(result)
        _check(result, _RESULT, _RESULT_OPTIONS)
        if max(result["top1_wrong"], result["top5_wrong"]) > result["n"]:
            raise ValueError(f"more images are wrong than n={result['n']}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a result of a run ({_first_line(error)}); delete it to finish the run again"
        ) from error
    return {**result, "top1_error": float(result["top1_error"])}


def _read_text(path: Path, limit: int) -> str:
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{size:,} bytes, at most {limit:,}")
    return path.read_text(encoding="utf-8")


def _check_plain(content: Any) -> None:
    """Raises ValueError unless `content` is a mapping of what JSON can hold."""
    if not isinstance(content, dict):
        raise ValueError("must be keys with values")
    try:
        json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    except TypeError as error:  # dates, sets, bytes, keys of several types
        raise ValueError(str(error)) from error


def _check(section: dict[str, Any], rules: Mapping[str, _Rule], options: Mapping[str, _Rule], prefix: str = "") -> None:
    """Raises ValueError for a value that breaks its rule, and a key of `rules` that is missing."""
    for key in rules:
        if key not in section:
            raise ValueError(f"{prefix}{key} is missing")
    for key, rule in {**rules, **options}.items():
        if key in section and not rule.holds(section[key]):
            raise ValueError(f"{prefix}{key} must be {rule.words}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True, eq=False)
class Scores:
    """What an evaluation leaves behind: everything that errors, combinations and comparisons need.

    scores: float32 (n, classes), mean softmax scores, each row in the order of the network's classes.
    labels: int64 (n,).
    names: str (n,), of the images.
    about: plain values: protocol, images (a hash of their names, labels and contents), data, network, where and when
        the scores were made.
    """

    scores: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    about: dict[str, Any]


def write_scores(path: Path, scores: Scores) -> None:
    """Writes one .npz file atomically."""
    about = np.array(json.dumps(scores.about, sort_keys=True))
    with atomic_file(path) as file:
        np.savez(file, scores=scores.scores, labels=scores.labels, names=scores.names, about=about)


def read_scores(path: Path) -> Scores:
    """What `write_scores` wrote. ValueError if it is damaged, or anything else; never runs code from the file."""
    fields = _read_arrays(path, ("scores", "labels", "names", "about"))
    try:
        about = json.loads(str(fields["about"]))
        scores, labels, names = (fields[name] for name in ("scores", "labels", "names"))
        n, classes = scores.shape
        kinds = (scores.dtype.kind, labels.dtype.kind, names.dtype.kind)
        if not isinstance(about, dict) or kinds != ("f", "i", "U") or not (len(labels) == len(names) == n > 0):
            raise ValueError(f"{n} scores, {len(labels)} labels and {len(names)} names of the kinds {kinds}")
        if not np.isfinite(scores).all() or labels.min() < 0 or labels.max() >= classes:
            raise ValueError("scores that are not finite, or labels out of range")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a scores file ({error}); delete it and run evaluate.py again") from error
    return Scores(scores, labels, names, about)


def _read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream:
            _check_archive(stream, names)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in names}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy fail on damaged files in a dozen ways
        raise ValueError(
            f"{path}: not a scores file ({_first_line(error)}); delete it and run evaluate.py again"
        ) from error


def _check_archive(stream: BinaryIO, names: tuple[str, ...]) -> None:
    """Raises ValueError unless the arrays are as numpy.savez writes them: not compressed, and as large as they say.

    So what they take in memory is bounded by the size of the file.
    """
    left = stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as archive:
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            left -= member.file_size
            if member.compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError(f"{name} unfolds to {member.file_size:,} bytes, more than the file holds")
            with archive.open(member) as array:
                read_header = _NPY_HEADERS[np.lib.format.read_magic(array)]
                shape, _, dtype = read_header(array)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{name} says {shape} of {dtype}, more than the file holds")


# Numpy writes version 3 for names of fields that are not Latin, which no array here has.
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ScorePart(NamedTuple):
    """Scores of some images of an evaluation that is not finished."""

    names: np.ndarray  # str (n,)
    digests: np.ndarray  # uint8 (n, 16), of the contents of the images
    scores: np.ndarray  # float32 (n, classes)


def add_score_part(folder: Path, identity: dict[str, Any], part: ScorePart) -> None:
    """Saves the scores of some images. `identity`: all that decides the scores of an image beside its content."""
    about = np.array(json.dumps(identity, sort_keys=True))
    with atomic_file(folder / f"{uuid.uuid4().hex}.npz") as file:
        np.savez(file, **part._asdict(), about=about)


def read_score_parts(scores: Path, identity: dict[str, Any]) -> Iterator[ScorePart]:
    """The parts of this identity in the folder `scores`, whichever selection of images they were saved for.

    Damaged parts and parts of another identity are skipped.
    """
    about = json.dumps(identity, sort_keys=True)
    for path in sorted(scores.glob("*.parts/*.npz")):
        try:
            fields = _read_arrays(path, (*ScorePart._fields, "about"))
        except (ValueError, FileNotFoundError):  # an evaluation that finishes meanwhile deletes its parts
            continue
        part = ScorePart(*(fields[name] for name in ScorePart._fields))
        if str(fields["about"]) == about and _is_whole(part):
            yield part


def _is_whole(part: ScorePart) -> bool:
    kinds = tuple(array.dtype.kind for array in part)
    n = len(np.atleast_1d(part.names))
    shapes_fit = part.names.shape == (n,) and part.digests.shape == (n, 16) and part.scores.shape[:-1] == (n,)
    return kinds == ("U", "u", "f") and shapes_fit and bool(np.isfinite(part.scores).all())


def delete_score_parts(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, of which nine lines can make a billion entries."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("holds an alias (*name)")
        return super().compose_node(parent, index)


def is_of_validation_images(about: dict[str, Any], config: dict[str, Any], result: dict[str, Any] | None) -> bool:
    """Whether scores are of exactly the images that the run validated on, wherever these are now.

    Args:
        about: of the scores.
        config, result: of the run. Without a result, or with one that does not name the validation images, the scores
            must be of the data section and the part that the run was trained on.
    """
    validated_on = (result or {}).get("validation_images")
    if validated_on is not None:
        return bool(about.get("images") == validated_on)
    return about.get("data") == config["data"] and about.get("part") == "val" and not about.get("exclude")


def read_run_config(run: Path) -> dict[str, Any] | None:
    """The config.yaml of a run directory, None where there is none. Runs no code.

    Raises ValueError, naming the file, if it is damaged or holds other things.
    """
    file = run / "config.yaml"
    if not file.is_file():
        return None
    try:
        config = yaml.load(_read_text(file, _MAX_CONFIG_BYTES), Loader=_PlainLoader)
        _check_plain(config)
        _check_config(config)
    except OSError:
        raise
    except Exception as error:  # the library fails on hostile files in a dozen ways
        raise ValueError(f"{file}: not the configuration of a run ({_first_line(error)})") from error
    return dict(config)


def _check_config(config: dict[str, Any]) -> None:
    for name, rules in _CONFIG.items():
        section = config.get(name) if name else config
        if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
            raise ValueError(f"{name} is not a section")
        _check(section, rules, _CONFIG_OPTIONS.get(name, {}), f"{name}." if name else "")
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


def environment() -> dict[str, Any]:
    """Versions, commit and hardware that a number was made with."""
    packages = ("sppnet", "torch", "torchvision", "pytorch-lightning", "timm")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "commit": _commit(),
        "hardware": _hardware(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with a + where it has been changed since; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def result_text(result: dict[str, Any], run: Path) -> str:
    """A short table of a finished run, and where to look."""
    epochs = result.get("epochs", len(result["history"]))
    rows = [
        ("network", result.get("network", "unknown")),
        (
            "data",
            f"{result.get('data', 'unknown')} ({result['n']:,} validation images, {result['num_classes']} classes)",
        ),
        ("protocol", result.get("protocol", "unknown")),
        ("top-1 error", _error(result["top1_wrong"], result["n"])),
        ("top-5 error", _error(result["top5_wrong"], result["n"])),
        ("trained", f"{epochs} epochs in {duration(result['seconds'])} on {result['hardware']}"),
        ("run directory", str(run)),
        ("TensorBoard", f"tensorboard --logdir {run}"),
    ]
    return "\n".join(f"  {name:<15}{value}" for name, value in rows)


def _error(wrong: int, n: int) -> str:
    low, high = wilson_interval(wrong, n)
    return f"{100 * wrong / n:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"


def duration(seconds: float) -> str:
    """Seconds in words, to two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} days {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
