"""What runs and evaluations leave behind: results and scores, whole or not at all, with where each number came from."""

import json
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sppnet.results.statistics import wilson_interval
from sppnet.runtime.files import atomic_file, write_json
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


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What a run records of one epoch. None: an old version did not record it, or the epoch was not validated."""

    epoch: int | None = None  # from 1
    size: int | None = None  # side of the training images in pixels
    train_loss: float | None = None  # mean over the images of the epoch
    learning_rate: float | None = None  # of the last step
    images_per_second: float  # of training, all processes together
    seconds: float | None = None  # with validation
    top1_wrong: int | None = None  # validation images, of n
    top5_wrong: int | None = None
    n: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Epoch":
        """Reads an entry of `history` in a checkpoint or a result.json; keys it does not know are ignored."""
        return cls(**_known(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """The entry of `history` for this epoch, without what is None."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a finished run, in the order of the keys in result.json. None: an old version did not record it.

    Errors are those of the last epoch, on one centre crop per validation image.
    """

    data: str | None = None  # name of the data source
    network: str | None = None  # summary in words
    protocol: str | None = None  # of the validation, in words
    top1_wrong: int  # validation images, of n
    top5_wrong: int
    n: int
    num_classes: int
    training_images: int
    unreadable_training_images: int | None = None  # replaced by others, in all processes
    data_fingerprint: str | None = None
    epochs: int | None = None
    seconds: float  # of all epochs, with validation
    seed: int | None = None
    precision: str | None = None  # as Lightning names it
    versions: dict[str, str | None] | None = None
    commit: str | None = None
    hardware: str
    history: tuple[Epoch, ...]
    checkpoint: str | None = None  # SHA-256 of checkpoints/last.ckpt
    validation_images: str | None = None  # fingerprint of names, labels and contents

    @property
    def top1_error(self) -> float:
        """A fraction, 0..1."""
        return self.top1_wrong / self.n

    @property
    def top5_error(self) -> float:
        """A fraction, 0..1."""
        return self.top5_wrong / self.n

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Result":
        """Reads the content of a checked result.json; keys it does not know are ignored."""
        return cls(**{**_known(cls, values), "history": tuple(map(Epoch.from_dict, values["history"]))})

    def to_dict(self) -> dict[str, Any]:
        """The content of result.json: fields without what is None, and both errors before their counts."""
        content: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "top1_wrong":
                content |= {"top1_error": self.top1_error, "top5_error": self.top5_error}
            if value is not None or field.name == "commit":  # null says that there was no checkout
                content[field.name] = value
        return {**content, "history": [epoch.to_dict() for epoch in self.history]}


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are fields of a dataclass."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _is_history(value: Any) -> bool:
    epochs = value if isinstance(value, list) and value else [None]
    return all(isinstance(epoch, dict) and POSITIVE.holds(epoch.get("images_per_second")) for epoch in epochs)


_SECONDS = Rule("a number from 0", lambda value: is_number(value) and value >= 0)
# A seed may be larger than the whole numbers that INDEX admits.
_SEED = Rule("a whole number from 0", lambda value: type(value) is int and value >= 0)
_COMMIT = Rule("null or text", lambda value: value is None or TEXT.holds(value))
_VERSIONS = Rule(
    "names with text or null", lambda value: isinstance(value, dict) and all(map(_COMMIT.holds, value.values()))
)
# Losses of old versions may be NaN.
_LOSS = Rule("a number", lambda value: type(value) in (int, float))

# Keys that every result has, and others that some have.
_RESULT = {
    "top1_error": FRACTION,
    **dict.fromkeys(("top1_wrong", "top5_wrong"), INDEX),
    **dict.fromkeys(("n", "num_classes", "training_images"), COUNT),
    "seconds": _SECONDS,
    "hardware": TEXT,
    "history": Rule("a list of epochs with images_per_second", _is_history),
}
_RESULT_OPTIONS = {
    **dict.fromkeys(("data", "network", "protocol", "data_fingerprint", "precision"), TEXT),
    **dict.fromkeys(("checkpoint", "validation_images"), TEXT),
    "unreadable_training_images": INDEX,
    "epochs": COUNT,
    "seed": _SEED,
    "versions": _VERSIONS,
    "commit": _COMMIT,
}
_EPOCH_OPTIONS = {
    **dict.fromkeys(("epoch", "size", "n"), COUNT),
    **dict.fromkeys(("top1_wrong", "top5_wrong"), INDEX),
    **dict.fromkeys(("train_loss", "learning_rate"), _LOSS),
    "seconds": _SECONDS,
}


def read_result(run: Path) -> Result | None:
    """The result of a finished run, None for one that is not finished.

    Raises ValueError, naming the file, if it is damaged or holds other things.
    """
    path = run / RESULT_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path, _MAX_RESULT_BYTES))
        check_plain(content)
        check_section(content, _RESULT, _RESULT_OPTIONS)
        for i, epoch in enumerate(content["history"]):
            check_section(epoch, {}, _EPOCH_OPTIONS, f"history[{i}].")
        result = Result.from_dict(content)
        if max(result.top1_wrong, result.top5_wrong) > result.n:
            raise ValueError(f"more images are wrong than n={result.n}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a result of a run ({first_line(error)}); delete it to finish the run again"
        ) from error
    return result


def write_result(run: Path, result: Result) -> None:
    """Writes result.json into a run directory, atomically."""
    write_json(run / RESULT_FILE, result.to_dict())


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


def is_of_validation_images(about: dict[str, Any], config: dict[str, Any], result: Result | None) -> bool:
    """Whether scores are of exactly the images that the run validated on, wherever these are now.

    Args:
        about: of the scores.
        config, result: of the run. Without a result, or with one that does not name the validation images, the scores
            must be of the data section and the part that the run was trained on.
    """
    if result is not None and result.validation_images is not None:
        return bool(about.get("images") == result.validation_images)
    return about.get("data") == config["data"] and about.get("part") == "val" and not about.get("exclude")


def result_text(result: Result, run: Path) -> str:
    """A short table of a finished run, and where to look."""
    epochs = result.epochs or len(result.history)
    rows = [
        ("network", result.network or "unknown"),
        ("data", f"{result.data or 'unknown'} ({result.n:,} validation images, {result.num_classes} classes)"),
        ("protocol", result.protocol or "unknown"),
        ("top-1 error", _error(result.top1_wrong, result.n)),
        ("top-5 error", _error(result.top5_wrong, result.n)),
        ("trained", f"{epochs} epochs in {duration(result.seconds)} on {result.hardware}"),
        ("run directory", str(run)),
        ("TensorBoard", f"tensorboard --logdir {run}"),
    ]
    return "\n".join(f"  {name:<15}{value}" for name, value in rows)


def _error(wrong: int, n: int) -> str:
    low, high = wilson_interval(wrong, n)
    return f"{100 * wrong / n:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
