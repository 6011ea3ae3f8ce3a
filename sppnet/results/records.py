"""What runs and evaluations leave behind: results and scores, whole or not at all, with where each number came from."""

import json
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sppnet.results.statistics import wilson_interval
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line
from sppnet.runtime.progress import duration
from sppnet.runtime.rules import (
    COUNT,
    FRACTION,
    INDEX,
    POSITIVE,
    TEXT,
    Rule,
    check_plain,
    check_section,
    is_number,
    read_text,
)

RESULT_FILE = "result.json"

# Part of the identity of saved scores. Raise it when the scores of an unchanged protocol change: other paddings, other
# cells of a window, another resizing. Scores saved under another number are made again.
SCORING_RULES = 2
# Records may come from a stranger, so their size and values are checked.
_MAX_RESULT_BYTES = 64 << 20  # a history of thousands of epochs


def _is_history(value: Any) -> bool:
    epochs = value if isinstance(value, list) and value else [None]
    return all(isinstance(epoch, dict) and POSITIVE.holds(epoch.get("images_per_second")) for epoch in epochs)


# Keys that every record has, and others that some have.
_RESULT = {
    "top1_error": FRACTION,
    **dict.fromkeys(("top1_wrong", "top5_wrong"), INDEX),
    **dict.fromkeys(("n", "num_classes", "training_images"), COUNT),
    "seconds": Rule("a number from 0", lambda value: is_number(value) and value >= 0),
    "hardware": TEXT,
    "history": Rule("a list of epochs with images_per_second", _is_history),
}
_RESULT_OPTIONS = {
    **dict.fromkeys(("network", "data", "protocol", "checkpoint", "validation_images"), TEXT),
    "epochs": COUNT,
}


def read_result(run: Path) -> dict[str, Any] | None:
    """The result of a finished run, None for one that is not finished.

    Raises ValueError, naming the file, if it is damaged or holds other things.
    """
    path = run / RESULT_FILE
    if not path.is_file():
        return None
    try:
        result = json.loads(read_text(path, _MAX_RESULT_BYTES))
        check_plain(result)
        check_section(result, _RESULT, _RESULT_OPTIONS)
        if max(result["top1_wrong"], result["top5_wrong"]) > result["n"]:
            raise ValueError(f"more images are wrong than n={result['n']}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a result of a run ({first_line(error)}); delete it to finish the run again"
        ) from error
    return {**result, "top1_error": float(result["top1_error"])}


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
            f"{path}: not a scores file ({first_line(error)}); delete it and run evaluate.py again"
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
