"""Saved decisions of transfer: found, read and checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppnet.results.comparisons import wrong
from sppnet.results.decisions import class_values, measures, resampled_precisions
from sppnet.results.network_records import NETWORK_RECORD
from sppnet.results.records import read_result
from sppnet.results.runs import hold_results, matching_folders, transfer_files
from sppnet.results.scores import Scores, read_about, read_scores
from sppnet.runtime.rules import COUNT, INDEX, POSITIVE, TEXT, Rule, check_section
from sppnet.runtime.run_directory import read_run_config

# The version of the code from images to decisions, part of the identity of saved decisions. Raise it when decisions of
# an unchanged protocol change. Decisions saved under another version are left out of tables and computed again.
TRANSFER_RULES = 1

PIXELS = "pixels"  # layer and network of the baseline of raw 16 x 16 pixels

_FLAG = Rule("true or false", lambda value: type(value) is bool)
_SECTION = Rule("keys with values", lambda value: isinstance(value, dict))
_NAMES = Rule("a list of names", lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value))
_ABOUT = {
    "network": _SECTION,
    "layer": TEXT,
    "length": COUNT,
    "view": TEXT,
    "scale": COUNT,
    "aligned": _FLAG,
    "C": POSITIVE,
    "solver": TEXT,
    "data": _SECTION,
    "data_text": TEXT,
    "split": INDEX,
    "splits": COUNT,
    "n_train": COUNT,
    "images": TEXT,
    "train_images": TEXT,
    "classes": _NAMES,
}


class Shape(NamedTuple):
    """What the decisions of one split are of."""

    images: int
    classes: int
    several_labels: bool  # of an image, rather than one class each


@dataclass(frozen=True, eq=False)
class Transfer:
    """Decisions of linear SVMs on one feature, for the test images of one split.

    path: the file; `Path()` for decisions in memory.
    about: `Scores.about`, checked.
    read: returns the scores. They are not kept: those of a whole table may not fit into memory.
    """

    path: Path
    about: dict[str, Any]
    read: Callable[[], Scores]

    @classmethod
    def in_memory(cls, scores: Scores) -> "Transfer":
        """Wraps decisions that were not read from a file."""
        return cls(Path(), scores.about, lambda: scores)

    @cached_property
    def measures(self) -> dict[str, float]:
        """Accuracies or mean average precisions, as `decisions.measures` has them."""
        return measures(self.scores)

    @cached_property
    def class_values(self) -> np.ndarray:
        """Accuracy or average precision per class, float (classes,)."""
        return class_values(self.scores)

    @cached_property
    def wrong(self) -> np.ndarray:
        """Which images are classified wrongly, bool (n,). Raises ValueError if images have several labels."""
        return wrong(self.scores)

    @cached_property
    def resampled(self) -> np.ndarray:
        """Mean average precision on resampled images, float (resamples,)."""
        return resampled_precisions(self.scores)

    @cached_property
    def shape(self) -> Shape:
        """The numbers of test images and classes, and the kind of labels."""
        scores = self.scores
        images, classes = scores.scores.shape
        return Shape(images, classes, scores.several_labels)

    @property
    def scores(self) -> Scores:
        """Reads the decisions. Raises ValueError, naming the file, if they do not fit `about`."""
        scores = self.read()
        if (found := scores.scores.shape[1]) != (expected := len(self.about["classes"])):
            raise ValueError(f"{self.path}: decisions of {found} classes, and {expected} names of classes")
        return scores

    @property
    def trained(self) -> bool:
        """Whether the feature is of a trained network, rather than of one of the two baselines."""
        return self.about["network"]["trained_on"] is not None


def read_transfers(patterns: Sequence[str]) -> list[Transfer]:
    """Reads the decisions below the run directories that the patterns match, and below those directly in the matches.

    A pattern may name a run directory's transfer/ or a folder in it, too. Leaves out decisions of an earlier checkpoint
    of a run, and those made by another version of the code.

    Raises ValueError for a pattern without run directories and decisions, and for damaged files.
    """
    transfers: dict[Path, Transfer] = {}
    for pattern in patterns:
        folders = matching_folders(pattern)
        files = list(dict.fromkeys(path for folder in folders for path in transfer_files(folder)))
        if not hold_results(folders) and all(read_run_config(folder) is None for folder in folders):
            raise ValueError(f"runs={pattern}: no run directories there, and no decisions of transfer")
        transfers |= {path: transfer for path in files if (transfer := _read_transfer(path)) is not None}
    return list(transfers.values())


def _read_transfer(path: Path) -> Transfer | None:
    """Reads the `about` of the decisions in a file; None if they are out of date."""
    about = read_about(path, "transfer")
    if about.get("rules") != TRANSFER_RULES:
        return None
    try:
        check_section(about, _ABOUT, {})
        check_section(about["network"], NETWORK_RECORD, {}, "network.")
    except ValueError as error:
        raise ValueError(f"{path}: not decisions of transfer ({error}); delete it") from error

    transfer = Transfer(path, about, lambda: read_scores(path, "transfer"))
    return transfer if not transfer.trained or _is_of_checkpoint(path.parents[2], about) else None


def _is_of_checkpoint(run: Path, about: dict[str, Any]) -> bool:
    """Whether decisions are of the network that the run ended with; they are if it has no record of one."""
    result = read_result(run) if read_run_config(run) is not None else None
    return result is None or result.checkpoint is None or about.get("checkpoint") == result.checkpoint
