"""Transferred features: decisions grouped over splits and runs, and compared."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppnet.results.decisions import measure_names
from sppnet.results.statistics import bootstrap_interval, error_interval, gain_interval, resampled_interval
from sppnet.results.transfers import PIXELS, Shape, Transfer


class Gain(NamedTuple):
    """How much better a feature is than another on the same images, in the first measure; fractions in -1..1."""

    value: float
    low: float  # 95 % interval
    high: float
    over_splits: bool  # the interval covers the choice of the split; else of the test images of the only split


@dataclass(frozen=True, eq=False)
class Feature:
    """One layer of one network in one view of one data set: all its splits, of all runs that differ in seed only."""

    runs: dict[int | None, dict[int, Transfer]]  # seed -> split -> decisions
    folders: frozenset[Path]  # of the decisions; baselines that several runs computed alike are in several

    @property
    def about(self) -> dict[str, Any]:
        """`Scores.about` of the first run and split."""
        return self._any.about

    @property
    def trained(self) -> bool:
        """Whether it is of a trained network."""
        return self._any.trained

    @property
    def is_pixels(self) -> bool:
        """Whether it is the baseline of raw pixels."""
        return _is_pixels(self.about)

    @property
    def setting(self) -> str:
        """The configuration of the network without the seed, as JSON."""
        return str(self.about["network"]["setting"])

    @property
    def shape(self) -> Shape:
        """The numbers of test images and classes of the first split, and the kind of labels."""
        return self._any.shape

    @property
    def measure_names(self) -> tuple[str, str]:
        """The names of its two measures; gains are counted in the first."""
        return measure_names(self.shape.several_labels)

    @property
    def splits(self) -> list[int]:
        """The splits that any run has."""
        return sorted({split for splits in self.runs.values() for split in splits})

    def means(self, measure: str) -> list[float]:
        """Returns the mean over splits of every run, as fractions."""
        return [statistics.mean(values) for values in self._values(measure)]

    def mean(self, measure: str) -> float:
        """Returns the mean over runs of the mean over splits, a fraction."""
        return statistics.mean(self.means(measure))

    def first_mean(self) -> float:
        """Returns the mean of the first measure, by which features are ranked."""
        return self.mean(self.measure_names[0])

    def interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of `first_mean`, as fractions in 0..1.

        With several splits it is over splits (`resampled_interval`), for these trained networks. With one it is over
        test images, and over training runs too if there are several.
        """
        by_split = [self.at(split) for split in self.splits]
        if len(by_split) > 1:
            low, high = resampled_interval(
                [_mean_measure(runs) for runs in by_split], self.about["n_train"], self.shape.images
            )
        elif self.shape.several_labels:
            runs = by_split[0]
            values = [next(iter(run.measures.values())) for run in runs]
            low, high = bootstrap_interval(values, np.stack([run.resampled for run in runs]))
        else:
            most, least = error_interval(np.stack([run.wrong for run in by_split[0]]))
            low, high = 1 - least, 1 - most
        return max(0.0, low), min(1.0, high)

    def deviation(self, measure: str) -> float | None:
        """Returns the standard deviation over splits (n - 1), its mean over runs; None with one split."""
        deviations = [statistics.stdev(values) for values in self._values(measure) if len(values) > 1]
        return statistics.mean(deviations) if deviations else None

    def class_means(self) -> np.ndarray:
        """Returns float (classes,): accuracy or average precision per class, the mean over splits and runs.

        Nan for classes that a split has no test image of.
        """
        return np.mean([transfer.class_values for transfer in self.transfers], axis=0)

    def at(self, split: int) -> list[Transfer]:
        """Returns the decisions of every run that has this split."""
        return [splits[split] for splits in self.runs.values() if split in splits]

    @property
    def transfers(self) -> list[Transfer]:
        """The decisions of every run and split."""
        return [transfer for splits in self.runs.values() for transfer in splits.values()]

    @property
    def _any(self) -> Transfer:
        return self.at(self.splits[0])[0]

    def _values(self, measure: str) -> list[list[float]]:
        return [[splits[split].measures[measure] for split in sorted(splits)] for splits in self.runs.values()]


def features(transfers: Sequence[Transfer]) -> list[Feature]:
    """Groups decisions by feature, in the order of `feature_order`. Baselines that several runs computed count once.

    Raises ValueError if two trained networks share the whole setting and the seed: one training would count twice.
    """
    images = _images_by_folder(transfers)
    runs: dict[Any, dict[int | None, dict[int, Transfer]]] = {}
    folders: dict[Any, set[Path]] = {}
    for transfer in transfers:
        key = (images[transfer.path.parent], *_identity(transfer))
        folders.setdefault(key, set()).add(transfer.path.parent)
        splits = runs.setdefault(key, {}).setdefault(_seed(transfer), {})
        first = splits.setdefault(transfer.about["split"], transfer)
        if first is not transfer and transfer.trained:
            raise ValueError(
                f"{first.path} and {transfer.path}: the same network and split; name only one of them in runs=[...]"
            )
    return sorted((Feature(seeds, frozenset(folders[key])) for key, seeds in runs.items()), key=feature_order)


def _identity(transfer: Transfer) -> tuple[Any, ...]:
    """Returns what must be equal for decisions to be of one feature: all but the data, the split and the seed."""
    about, network = transfer.about, transfer.about["network"]
    of_network = () if _is_pixels(about) else tuple(network[key] for key in ("name", "setting", "trained_on"))
    return *(about[key] for key in ("view", "scale", "aligned", "layer", "length", "C")), *of_network


def _seed(transfer: Transfer) -> int | None:
    return None if _is_pixels(transfer.about) else transfer.about["network"]["seed"]


def _is_pixels(about: dict[str, Any]) -> bool:
    return about["layer"] == PIXELS


def protocol(about: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what must be equal for decisions to share a table: the data, and the images of the split."""
    return tuple(about[key] for key in ("data_text", "n_train", "split", "images", "train_images"))


def _images_by_folder(transfers: Sequence[Transfer]) -> dict[Path, tuple[Any, ...]]:
    """Returns for every folder the protocol of its first split, by which those of other data are told apart."""
    first: dict[Path, dict[str, Any]] = {}
    for transfer in transfers:
        about, folder = transfer.about, transfer.path.parent
        if folder not in first or about["split"] < first[folder]["split"]:
            first[folder] = about
    return {folder: protocol(about) for folder, about in first.items()}


def by_protocol(found: Sequence[Feature]) -> list[list[Feature]]:
    """Groups features by data set, training and test images: features that can share a table."""
    groups: dict[tuple[Any, ...], list[Feature]] = {}
    for feature in found:
        groups.setdefault(protocol(feature.about), []).append(feature)
    return list(groups.values())


def feature_order(feature: Feature) -> tuple[Any, ...]:
    """Sorts features: trained networks, untrained ones, pixels; then by network, view, scale and depth of the layer."""
    about, network = feature.about, feature.about["network"]
    kind = 0 if feature.trained else 2 if feature.is_pixels else 1
    name = (not network["on_imagenet"], network["name"], network["variant"] or "", network["setting"])
    return kind, *name, about["view"], about["scale"], about["aligned"], layer_order(about["layer"]), about["C"]


def layer_order(layer: str) -> tuple[int, str]:
    """Sorts layers by depth: conv4, conv5, pool5_6x6, pool5, fc6, fc7; unknown ones first."""
    kinds = ("conv", "pool5_6x6", "pool5", "fc")
    name = layer if layer in kinds else layer.rstrip("0123456789")
    return kinds.index(name) if name in kinds else -1, layer


def untrained_baseline(feature: Feature, found: Sequence[Feature]) -> Feature | None:
    """Returns the same layer and view of the same network with random weights, if it was run beside `feature`."""
    return _beside(feature, found, feature.about["layer"]) if feature.trained else None


def pixels_baseline(feature: Feature, found: Sequence[Feature]) -> Feature | None:
    """Returns the raw pixels that were run beside `feature`, if any."""
    return None if feature.is_pixels else _beside(feature, found, PIXELS)


def _beside(feature: Feature, found: Sequence[Feature], layer: str) -> Feature | None:
    keys = ("data_text", "view", "scale", "C")
    for other in found:
        same = all(other.about[key] == feature.about[key] for key in keys) and other.about["layer"] == layer
        if same and not other.trained and not feature.folders.isdisjoint(other.folders):
            return other
    return None


def gain(feature: Feature, baseline: Feature) -> Gain | None:
    """Compares two features in their first measure, on the splits that both have; None if they have none in common.

    With several splits the interval is over splits (`resampled_interval`), for these trained networks. With one it is
    over images, and over training runs as well if both sides have several and images have one label (`gain_interval`).

    Raises ValueError if a split has other images.
    """
    splits = sorted({*feature.splits} & {*baseline.splits})
    if not splits:
        return None
    pairs = [(feature.at(split), baseline.at(split)) for split in splits]
    for ours, theirs in pairs:
        check_same_split(*ours, *theirs)

    if len(splits) == 1:
        return _gain_over_images(*pairs[0])
    differences = [_mean_measure(ours) - _mean_measure(theirs) for ours, theirs in pairs]
    interval = resampled_interval(differences, feature.about["n_train"], feature.shape.images)
    return Gain(statistics.mean(differences), *interval, over_splits=True)


def _gain_over_images(ours: Sequence[Transfer], theirs: Sequence[Transfer]) -> Gain:
    value = _mean_measure(ours) - _mean_measure(theirs)
    if not ours[0].shape.several_labels:
        sides = [np.stack([transfer.wrong for transfer in side]) for side in (theirs, ours)]
        return Gain(value, *gain_interval(*sides), over_splits=False)

    resampled = [np.mean([transfer.resampled for transfer in side], axis=0) for side in (ours, theirs)]
    variance = max(
        float((resampled[0] - resampled[1]).var(ddof=1)), 2 / ours[0].shape.images ** 2
    )  # as `gain_interval`
    spread = 1.96 * math.sqrt(variance)
    return Gain(value, max(-1.0, value - spread), min(1.0, value + spread), over_splits=False)


def _mean_measure(transfers: Sequence[Transfer]) -> float:
    """Returns the mean over runs of the first measure."""
    return statistics.mean(next(iter(transfer.measures.values())) for transfer in transfers)


def check_same_split(first: Transfer, *others: Transfer) -> None:
    """Raises ValueError unless all were trained and tested on the same images."""
    for other in others:
        if any(first.about[key] != other.about[key] for key in ("images", "train_images", "classes")):
            raise ValueError(
                f"{first.path} and {other.path}: split {first.about['split']} has different images or classes in them"
            )
