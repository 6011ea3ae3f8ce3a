"""Tests of detectors: their saved detections found and checked, grouped over runs, and compared."""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppnet.data.objects import objects_fingerprint
from sppnet.results.detections import Detections, read_detections, read_detections_about
from sppnet.results.network_records import NETWORK_RECORD
from sppnet.results.object_files import OBJECTS_FILE, SavedObjects, read_objects
from sppnet.results.precisions import (
    Matches,
    class_curves,
    class_precisions,
    match_detections,
    mean_of_known,
    resampled_precisions,
)
from sppnet.results.runs import detection_files, hold_results, matching_folders
from sppnet.results.statistics import bootstrap_interval
from sppnet.runtime.rules import COUNT, FRACTION, SEED, TEXT, Rule, check_section
from sppnet.runtime.run_directory import read_run_config

_SECTION = Rule("keys with values", lambda value: isinstance(value, dict))
_SCALES = Rule(
    "a list of whole numbers from 1",
    lambda value: isinstance(value, list) and len(value) > 0 and all(map(COUNT.holds, value)),
)
_RECALL = Rule(
    "a list of recalls with threshold, objects, share, low and high",
    lambda value: isinstance(value, list) and all(isinstance(entry, dict) and _is_recall(entry) for entry in value),
)
_ABOUT = {
    "row": TEXT,
    "network": _SECTION,
    "checkpoint": TEXT,
    "seed": SEED,
    "setting": TEXT,
    "scales": _SCALES,
    "lengths": _SECTION,
    "proposals": _SECTION,
    "suppression_overlap": FRACTION,
    "most": COUNT,
    "data": _SECTION,
    "data_text": TEXT,
    "n_train": COUNT,
    "objects": TEXT,
}


_OPTIONAL = {"recall": _RECALL}  # of the proposals; empty if no object counts


def _is_recall(entry: dict[str, Any]) -> bool:
    """Whether these are the values of a `sppnet.detect.recall.Recall`."""
    return COUNT.holds(entry.get("objects")) and all(
        FRACTION.holds(entry.get(key)) for key in ("threshold", "share", "low", "high")
    )


class Measured(NamedTuple):
    """What the detections of a test set are worth. All are fractions in 0..1, nan for classes without objects."""

    precisions: np.ndarray  # (classes,), average precision by recall at 11 points, the paper's
    all_points: np.ndarray  # (classes,), average precision by recall at all points
    resampled: np.ndarray  # (resamples,), mean of the former over classes, on random images
    curves: np.ndarray  # (classes, 101), the highest precision at recalls from 0 to 1
    counts: np.ndarray  # int64 (n, classes), objects of each image that are not difficult
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DetectorTest:
    """The detections of one detector on a test set.

    path: the file; a path that does not exist for detections in memory.
    about: `Detections.about`, checked.
    read: returns the detections and the objects. They are not kept: those of a whole table may not fit into memory.
    """

    path: Path
    about: dict[str, Any]
    read: Callable[[], tuple[Detections, SavedObjects]]

    @cached_property
    def measured(self) -> Measured:
        """What is worth keeping of the detections. Raises ValueError, naming the file, if it is damaged."""
        matches = self.matches()
        return Measured(
            class_precisions(matches),
            class_precisions(matches, points=None),
            resampled_precisions(matches),
            class_curves(matches),
            matches.counts,
            matches.detections.classes,
        )

    def matches(self) -> Matches:
        """Matches the detections with the objects."""
        return match_detections(*self.read())


def read_detector_runs(patterns: Sequence[str]) -> list[DetectorTest]:
    """Reads the detections below the run directories that the patterns match, and below those directly in the matches.

    A pattern may name a run directory's detections/, too.

    Raises ValueError for a pattern without run directories and detections, and for damaged files.
    """
    tests: dict[Path, DetectorTest] = {}
    for pattern in patterns:
        folders = matching_folders(pattern)
        files = list(dict.fromkeys(path for folder in folders for path in detection_files(folder)))
        if not hold_results(folders) and all(read_run_config(folder) is None for folder in folders):
            raise ValueError(f"runs={pattern}: no run directories there, and no detections")
        tests |= {path: _read_test(path) for path in files}
    return list(tests.values())


def _read_test(path: Path) -> DetectorTest:
    """Reads the `about` of the detections in a file."""
    about = read_detections_about(path)
    try:
        check_section(about, _ABOUT, _OPTIONAL)
        check_section(about["network"], NETWORK_RECORD, {}, "network.")
    except ValueError as error:
        raise ValueError(f"{path}:1: not detections of a detector ({error})") from error
    return DetectorTest(path, about, lambda: _read_both(path, about))


def _read_both(path: Path, about: dict[str, Any]) -> tuple[Detections, SavedObjects]:
    """Reads detections and the objects beside them. Raises ValueError if these are of other images."""
    place = path.with_name(OBJECTS_FILE)
    if not place.is_file():
        raise ValueError(f"{place}: missing; it has the objects that {path.name} is compared with")
    objects = read_objects(place)
    if objects_fingerprint(objects) != about["objects"]:
        raise ValueError(f"{place}: not the objects that {path.name} was tested on")
    detections = read_detections(path)
    if detections.names != objects.names or detections.classes != objects.classes:
        raise ValueError(f"{path}: detections of other images or classes than {place.name} has")
    return detections, objects


@dataclass(frozen=True, eq=False)
class TestedRow:
    """One row of a table: the tests of detectors that differ only in the seeds of detector and network."""

    __test__ = False  # pytest takes names that begin with Test for tests

    runs: dict[tuple[str, int], DetectorTest]  # (checkpoint, seed) -> its test

    @property
    def about(self) -> dict[str, Any]:
        """`Detections.about` of the first run."""
        return self.tests[0].about

    @property
    def name(self) -> str:
        """The name of the row: ftfc7_bb."""
        return str(self.about["row"])

    @property
    def tests(self) -> list[DetectorTest]:
        """The tests of all runs."""
        return list(self.runs.values())

    @property
    def scales(self) -> tuple[int, ...]:
        """The shorter sides of the resized images."""
        return tuple(self.about["scales"])

    @property
    def setting(self) -> str:
        """The configurations of network and detector without seeds."""
        return f"{self.about['network']['setting']} {self.about['setting']}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.tests[0].measured.classes

    @property
    def counts(self) -> np.ndarray:
        """Objects of each image that are not difficult, int64 (n, classes)."""
        return self.tests[0].measured.counts

    def means(self) -> list[float]:
        """Returns the 11-point mean average precision of every run, as fractions."""
        return [mean_of_known(test.measured.precisions) for test in self.tests]

    def mean(self) -> float:
        """Returns the mean over runs of the 11-point mean average precision, a fraction; nan without objects."""
        return statistics.mean(self.means())

    def interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of `mean`: over images, and over runs if there are several. Needs objects."""
        low, high = bootstrap_interval(self.means(), np.stack([test.measured.resampled for test in self.tests]))
        return max(0.0, low), min(1.0, high)

    def all_points(self) -> float:
        """Returns the mean over runs of the mean average precision by recall at all points."""
        return statistics.mean(mean_of_known(test.measured.all_points) for test in self.tests)

    def class_means(self) -> np.ndarray:
        """Returns float (classes,): 11-point average precision per class, the mean over runs."""
        return np.mean([test.measured.precisions for test in self.tests], axis=0)

    def curves(self) -> np.ndarray:
        """Returns float (classes, 101): the highest precision at recalls from 0 to 1 or more, the mean over runs."""
        return np.mean([test.measured.curves for test in self.tests], axis=0)


class Gain(NamedTuple):
    """How much higher a mean average precision is than another on the same images; fractions in -1..1."""

    value: float
    low: float  # 95 % interval
    high: float
    runs: int  # that are compared in pairs; with one, the interval is over images only


def gain(row: TestedRow, baseline: TestedRow) -> Gain | None:
    """Compares two rows on the runs that both have; None if there are none in common, or no objects.

    Images are drawn in pairs, and so are runs: both rows of a run share network, proposals and mining.
    """
    pairs = [(row.runs[key].measured, baseline.runs[key].measured) for key in row.runs if key in baseline.runs]
    if not pairs or not row.counts.any():
        return None
    values = [mean_of_known(ours.precisions) - mean_of_known(theirs.precisions) for ours, theirs in pairs]
    low, high = bootstrap_interval(values, np.stack([ours.resampled - theirs.resampled for ours, theirs in pairs]))
    return Gain(statistics.mean(values), max(-1.0, low), min(1.0, high), len(pairs))


# Grouping.


def by_row(tests: Sequence[DetectorTest]) -> list[TestedRow]:
    """Groups tests by row, in the order of `row_order`.

    Raises ValueError if two tests are of the same detector: one training would count twice.
    """
    groups: dict[Any, dict[tuple[str, int], DetectorTest]] = {}
    for test in tests:
        runs = groups.setdefault((*protocol(test.about), *_detector(test.about), test.about["row"]), {})
        first = runs.setdefault((test.about["checkpoint"], test.about["seed"]), test)
        if first is not test:
            raise ValueError(f"{first.path} and {test.path}: the same detector; name only one of them in runs=[...]")
    return sorted((TestedRow(dict(sorted(runs.items(), key=_seed))) for runs in groups.values()), key=_order)


def _seed(run: tuple[tuple[str, int], DetectorTest]) -> tuple[int, int]:
    about = run[1].about
    return about["network"]["seed"] or 0, about["seed"]


def _order(row: TestedRow) -> tuple[Any, ...]:
    about, network = row.about, row.about["network"]
    name = (not network["on_imagenet"], network["name"], network["variant"] or "", row.setting)
    return about["data_text"], *name, len(row.scales), row.scales, row_order(row.name)


def _detector(about: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what must be equal for tests to be of detectors that differ in row and seeds only."""
    network = about["network"]
    return *(network[key] for key in ("name", "setting", "trained_on")), about["setting"], tuple(about["scales"])


def protocol(about: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what must be equal for tests to share a table: the data, and the objects of the test images."""
    return tuple(about[key] for key in ("data_text", "n_train", "objects"))


def by_protocol(rows: Sequence[TestedRow]) -> list[list[TestedRow]]:
    """Groups rows by data set, training images and test images: rows that can share a table."""
    groups: dict[tuple[Any, ...], list[TestedRow]] = {}
    for row in rows:
        groups.setdefault(protocol(row.about), []).append(row)
    return list(groups.values())


def row_order(name: str) -> tuple[int, str]:
    """Sorts rows as Table 9 does, fc7 before the fine-tuned ones, R-CNN's after them; names of other forms last."""
    match = re.fullmatch(r"(|ft|rcnn_)(pool5|fc6|fc7)(_bb)?", name)
    if match is None:
        return 99, name
    layers = ("pool5", "fc6", "fc7")
    way = ("", "ft", "rcnn_").index(match[1])
    return 2 * (len(layers) * way + layers.index(match[2])) + bool(match[3]), name


def row_before(row: TestedRow, rows: Sequence[TestedRow]) -> TestedRow | None:
    """Returns the row of the same detector that gains are counted from.

    With box regression it is the row without it; after fine-tuning it is the same layer before; for R-CNN it is the
    same row of SPP-net; in other cases, and if that was not tested, it is the row before it without box regression.
    """
    others = {other.name: other for other in rows if _same_detector(other, row) and other.name != row.name}
    for name in (row.name.removesuffix("_bb"), row.name.removeprefix("ft"), row.name.removeprefix("rcnn_")):
        if name in others:
            return others[name]
    before = [
        other for name, other in others.items() if not name.endswith("_bb") and row_order(name) < row_order(row.name)
    ]
    return max(before, key=lambda other: row_order(other.name), default=None)


def _same_detector(row: TestedRow, other: TestedRow) -> bool:
    return protocol(row.about) == protocol(other.about) and _detector(row.about) == _detector(other.about)
