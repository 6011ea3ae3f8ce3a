"""Combines transferred features by the mean of the decision values of their SVMs; no SVM is trained again."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sppnet.results.comparisons import combine
from sppnet.results.scores import Scores
from sppnet.results.transferred_features import Feature, check_same_split, features
from sppnet.results.transfers import Transfer
from sppnet.runtime.names import listing


class Combination(NamedTuple):
    """Several features, and what the mean of their decision values classifies."""

    parts: list[Feature]
    feature: Feature  # of the mean; its `about` is that of the first part but for the layer


def combined(text: str, transfers: Sequence[Transfer]) -> Combination:
    """Combines features by the mean of their decision values, split by split, with equal weights.

    Runs are combined by seed; features of one run each are combined whatever their seeds are.

    Args:
        text: names of two or more features, joined by "+". A name is the end of the path of the decisions without
            "-splitN.npz", and may hold *: "pool5", "caltech101-full392-*/pool5", "zf5-seed1*/transfer/*/fc7".
        transfers: where to look for them.

    Raises ValueError for names that do not fit exactly one feature, and for features of other seeds, splits, images or
    classes than the first's.
    """
    names = [name.strip() for name in text.split("+")]
    if len(names) < 2 or not all(names):
        raise ValueError(f"combine={text}: must be two or more names of decisions joined by +, as in pool5+fc7")
    parts = [_named(text, name, transfers) for name in names]
    files = [transfer.path for part in parts for transfer in part.transfers]
    if len(set(files)) < len(files):
        raise ValueError(f"combine={text}: must not name the same decisions twice")

    runs = {}
    for seed, sides in _runs_by_seed(text, parts).items():
        if any(splits.keys() != sides[0].keys() for splits in sides):
            numbers = " and ".join(_numbers(splits) for splits in sides)
            raise ValueError(f"combine={text}: has the splits {numbers}; must have the same ones")
        runs[seed] = {split: _mean([splits[split] for splits in sides]) for split in sides[0]}
    return Combination(parts, Feature(runs, frozenset().union(*(part.folders for part in parts))))


def _named(text: str, name: str, transfers: Sequence[Transfer]) -> Feature:
    """Returns the only feature of which the paths of decisions end with `name`."""
    paths = {transfer: transfer.path.with_name(transfer.path.name.rpartition("-split")[0]) for transfer in transfers}
    found = features([transfer for transfer, path in paths.items() if path.match(name)])
    if not found:
        known = listing(sorted({path.name for path in paths.values()}))
        raise ValueError(f"combine={text}: no decisions of {name}; there are {known}")
    if len(found) > 1:
        places = [paths[feature.transfers[0]] for feature in found[:2]]
        raise ValueError(
            f"combine={text}: {name} is the name of {len(found)} features, such as {places[0]} and {places[1]}; give "
            "more of the path of one"
        )
    return found[0]


def _runs_by_seed(text: str, parts: Sequence[Feature]) -> dict[int | None, list[dict[int, Transfer]]]:
    """Returns seed -> the splits of every part, for the runs to combine."""
    first = parts[0].runs
    if all(len(part.runs) == 1 for part in parts):
        return {next(iter(first)): [next(iter(part.runs.values())) for part in parts]}
    if any(part.runs.keys() != first.keys() for part in parts):
        seeds = " and ".join(_numbers(part.runs) for part in parts)
        raise ValueError(f"combine={text}: has runs of the seeds {seeds}; must be the same seeds, or one run of each")
    return {seed: [part.runs[seed] for part in parts] for seed in first}


def _numbers(values: Iterable[int | None]) -> str:
    return listing(list(map(str, values)))


def _mean(parts: Sequence[Transfer]) -> Transfer:
    """Returns the mean of decisions of the same split; they are read when they are asked for.

    Raises ValueError unless all were trained and tested on the same images.
    """
    check_same_split(*parts)

    def read() -> Scores:
        named = [replace(part.scores, about=part.about | {"run": str(part.path)}) for part in parts]  # for errors
        return combine(named)

    about = parts[0].about | {"layer": " + ".join(part.about["layer"] for part in parts)}
    return Transfer(Path(), about, read)
