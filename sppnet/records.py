"""What runs and evaluations leave behind: results and scores, whole or not at all, with where each number came from."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from sppnet.files import atomic_file
from sppnet.metrics import wilson_interval

RESULT_FILE = "result.json"

# Part of the identity of saved scores. Raise it when the scores of an unchanged protocol change: other paddings, other
# cells of a window, another resizing. Scores saved under another number are made again.
SCORING_RULES = 2


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())


def read_result(run: Path) -> dict[str, Any] | None:
    """The result of a finished run, None for one that is not finished. ValueError if the file is damaged."""
    path = run / RESULT_FILE
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text())
        return {**result, "top1_error": float(result["top1_error"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of a run ({error}); delete it to finish the run again") from error


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
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a scores file ({error}); delete it and run evaluate.py again") from error
    return Scores(scores, labels, names, about)


def _read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        # Given a path, numpy leaves the file open where it is no zip archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a scores file ({reason}); delete it and run evaluate.py again") from error


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
    """The config.yaml of a run directory, None where there is none. ValueError if it is damaged. Runs no code."""
    file = run / "config.yaml"
    if not file.is_file():
        return None
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        missing = [
            name for name in ("backbone", "pooling", "sizes", "data", "recipe") if not isinstance(config[name], dict)
        ]
        if missing:
            raise ValueError(f"{missing[0]} is not a section")
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not the configuration of a run ({str(error).splitlines()[0]})") from error
    return dict(config)


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
    rows = [
        ("network", result["network"]),
        ("data", f"{result['data']} ({result['n']:,} validation images, {result['num_classes']} classes)"),
        ("protocol", result["protocol"]),
        ("top-1 error", _error(result["top1_wrong"], result["n"])),
        ("top-5 error", _error(result["top5_wrong"], result["n"])),
        ("trained", f"{result['epochs']} epochs in {duration(result['seconds'])} on {result['hardware']}"),
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
