"""The result of a training run: result.json as typed values, read with checks and written atomically."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sppnet.results.statistics import wilson_interval
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.files import write_json
from sppnet.runtime.names import counted, first_line
from sppnet.runtime.progress import duration
from sppnet.runtime.rules import (
    COUNT,
    FRACTION,
    INDEX,
    POSITIVE,
    SEED,
    TEXT,
    Rule,
    check_plain,
    check_section,
    is_number,
    read_text,
)

_RESULT_FILE = "result.json"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What a run records of one epoch. None: an old version did not record it, or the epoch was not validated."""

    epoch: int | None = None  # from 1
    size: int | None = None  # side of the training images in pixels; None also if every batch had its own
    train_loss: float | None = None  # mean over the images of the epoch
    learning_rate: float | None = None  # of the last step
    images_per_second: float  # of training, all processes together
    seconds: float | None = None  # with validation
    top1_wrong: int | None = None  # validation images, of n
    top5_wrong: int | None = None
    n: int | None = None
    val_loss: float | None = None  # mean over the validation images, without label smoothing

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Epoch":
        """Converts an entry of `history` in a checkpoint or in result.json. Ignores keys it does not know."""
        return cls(**_known(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of `history` for this epoch, without what is None."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a finished run, in the order of the keys in result.json. None: an old version did not record it.

    Errors are those after the last epoch, or after the best one if training stopped early, on one centre crop per
    validation image.
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
    stopped: str | None = None  # why training ended before its last epoch; None if it did not
    best_epoch: int | None = None  # that of the errors if training ended early, from 1
    seconds: float  # of all epochs, with validation
    seed: int | None = None
    command: str | None = None  # that finished the run
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
        """Converts the checked content of result.json. Ignores keys it does not know."""
        return cls(**{**_known(cls, values), "history": tuple(map(Epoch.from_dict, values["history"]))})

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of result.json: the fields without what is None, and both errors before their counts."""
        content: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "top1_wrong":
                content |= {"top1_error": self.top1_error, "top5_error": self.top5_error}
            if value is not None or field.name == "commit":  # null says that there was no checkout
                content[field.name] = value
        return {**content, "history": [epoch.to_dict() for epoch in self.history]}


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of `values` that are fields of a dataclass."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


# A result.json may come from anyone, so its size and its values are checked.
_MAX_RESULT_BYTES = 64 << 20  # a history of thousands of epochs


def _is_history(value: Any) -> bool:
    epochs = value if isinstance(value, list) and value else [None]
    return all(isinstance(epoch, dict) and POSITIVE.holds(epoch.get("images_per_second")) for epoch in epochs)


_SECONDS = Rule("a number from 0", lambda value: is_number(value) and value >= 0)
_FLOAT = Rule("a number", lambda value: type(value) in (int, float))  # losses of old versions may be NaN
_COMMIT = Rule("null or text", lambda value: value is None or TEXT.holds(value))
_VERSIONS = Rule(
    "names with text or null", lambda value: isinstance(value, dict) and all(map(_COMMIT.holds, value.values()))
)

# Keys that every result has, and others that some have; the same for epochs.
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
    **dict.fromkeys(("epochs", "best_epoch"), COUNT),
    "stopped": TEXT,
    "seed": SEED,
    "versions": _VERSIONS,
    "commit": _COMMIT,
}
_EPOCH_OPTIONS = {
    **dict.fromkeys(("epoch", "size", "n"), COUNT),
    **dict.fromkeys(("top1_wrong", "top5_wrong"), INDEX),
    **dict.fromkeys(("train_loss", "learning_rate"), _FLOAT),
    "seconds": _SECONDS,
}


def read_result(run: Path) -> Result | None:
    """Reads the result of a run directory; returns None if the run is not finished.

    Raises ValueError, naming the file, if it is damaged or holds anything else.
    """
    path = run / _RESULT_FILE
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
    write_json(run / _RESULT_FILE, result.to_dict())


def shows_top5(classes: int) -> bool:
    """Whether a top-5 error over so many classes is shown: from 10 on.

    With fewer, guesses at random are right more often than not, and with five or fewer always. Records have it anyway.
    """
    return classes >= 10


def result_text(result: Result, run: Path, best: int | None = None) -> str:
    """Returns a short table of a finished run, with the paths to look at next.

    Args:
        result: of the run.
        run: its directory.
        best: the index in `history` of the best epoch, which is shown if the result is of another one.
    """
    epochs = result.epochs or len(result.history)
    early = f"; stopped early: {result.stopped}; epoch {result.best_epoch} is the result" if result.stopped else ""
    rows = [
        ("network", result.network or "unknown"),
        ("data", _data_text(result)),
        ("protocol", result.protocol or "unknown"),
        ("top-1 error", _error_text(result.top1_wrong, result.n)),
        *([("top-5 error", _error_text(result.top5_wrong, result.n))] * shows_top5(result.num_classes)),
        ("trained", f"{counted(epochs, 'epoch')} in {duration(result.seconds)} on {result.hardware}{early}"),
        *_best_row(result, run, best),
        ("run directory", str(run)),
    ]
    if (run / "tensorboard").is_dir():
        rows.append(("TensorBoard", f"tensorboard --logdir {run}"))
    metrics = sorted(run.glob("csv/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime)
    rows += [("metrics", str(file)) for file in metrics[-1:]]  # of the last start
    rows.append(("next", f"{shown_command('predict')} run={run} images=PHOTOS"))
    return "\n".join(f"  {name:<15}{value}" for name, value in rows)


def _data_text(result: Result) -> str:
    images, classes = counted(result.n, "validation image"), counted(result.num_classes, "class")
    return f"{result.data or 'unknown'} ({images}, {classes})"


def _best_row(result: Result, run: Path, best: int | None) -> list[tuple[str, str]]:
    """Returns a row about the best epoch, an index, if the result is of another one and its checkpoint is there."""
    checkpoint = run / "checkpoints" / "best.ckpt"
    if best is None or best + 1 == (result.best_epoch or len(result.history)) or not checkpoint.is_file():
        return []
    epoch = result.history[best]
    error = 100 * (epoch.top1_wrong or 0) / (epoch.n or 1)
    return [("best epoch", f"{best + 1}, top-1 error {error:.2f} %: {checkpoint}")]


def _error_text(wrong: int, n: int) -> str:
    low, high = wilson_interval(wrong, n)
    return f"{100 * wrong / n:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
