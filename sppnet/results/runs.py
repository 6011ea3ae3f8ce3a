"""Run directories with their results and scores, found by path patterns and grouped by what may be compared."""

import glob
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sppnet.data.folders import ILSVRC_2012
from sppnet.results.object_files import OBJECTS_FILE
from sppnet.results.records import Result, read_result
from sppnet.results.scores import SCORING_RULES, Scores, check_single_label, is_of_validation_images, read_scores
from sppnet.runtime.names import first_line
from sppnet.runtime.overrides import hydra_value
from sppnet.runtime.run_directory import checkpoint_digest, flat, read_run_config, sizes_in_words, without_folders

# What the paper compares, in the order in which tables show it.
VARIANTS = {
    "none": "no SPP",
    "single": "SPP, one size",
    "30bins": "SPP of 30 bins, one size",
    "random": "SPP, random sizes",
    "alternate": "SPP, two sizes",
}

_DECISIONS = re.compile(r".+-split\d+\.npz")  # names of the files in RUN/transfer/TITLE


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory: its configuration, its result (None while training is unfinished), the scores of its tests."""

    path: Path
    config: dict[str, Any]
    result: Result | None

    @property
    def architecture(self) -> str:
        """A name of BACKBONES, or of a timm model."""
        backbone = self.config["backbone"]
        return str(backbone.get("name") or backbone["architecture"])

    @property
    def on_imagenet(self) -> bool:
        """Whether it was trained on ImageNet, so that the paper's numbers are comparable with its own.

        A prepared store is recognized by its numbers of images, which only a finished run records.
        """
        source, result = self.config["data"]["source"], self.result
        counts = None if result is None else (result.training_images, result.n)
        return bool(source == "imagenet" or (source == "prepared" and counts == ILSVRC_2012))

    @property
    def levels(self) -> tuple[int, ...] | None:
        """The pyramid; None without one."""
        levels = self.config["pooling"]["levels"]
        return None if levels is None else tuple(levels)

    @property
    def sizes(self) -> list[int | str]:
        """The sizes of training, such as [224, 180] or ["random", 180, 224, "per batch"]."""
        return sizes_in_words(self.config["sizes"])

    @property
    def variant(self) -> str | None:
        """The key of VARIANTS for this run, None if no key fits."""
        random, several = self.sizes[0] == "random", len(self.sizes) > 1
        if self.levels is None:
            return "none"
        if self.levels == (6, 3, 2, 1):
            return "random" if random else "alternate" if several else "single"
        return "30bins" if self.levels == (4, 3, 2, 1) and not several else None

    def setting(self, *ignored: str) -> str:
        """Returns the settings that must be equal for two runs to be compared, as JSON.

        They are the configuration without the seed and the `ignored` sections, with the root of the data reduced to its
        last folder.
        """
        config = {key: value for key, value in self.config.items() if key not in {"seed", *ignored}}
        return json.dumps({**config, "data": without_folders(self.config["data"])}, sort_keys=True)

    def setting_text(self) -> str:
        """Describes network, data and recipe in one line."""
        backbone, recipe, data = (self.config[section] for section in ("backbone", "recipe", "data"))
        options = [
            f"{k} {v}" for k, v in backbone.items() if k not in {"architecture", "name", "pretrained", "weights"}
        ]
        hidden = self.config["hidden"]
        options.append("linear classifier" if hidden is None else f"hidden {hidden}")
        if data.get("classes") is not None:
            options.append(f"{len(data['classes'])} of the classes")
        return (
            f"{self.architecture} on {data['source']} ({', '.join(options)}; "
            f"{recipe['epochs']} epochs, batch {recipe['batch_size']}, rate {recipe['learning_rate']:g})"
        )

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Protocol title -> scores of the finished run on exactly its validation images.

        Leaves out scores of an earlier checkpoint, and those made by another version of the scoring code. Raises
        ValueError for files that are damaged or have several labels per image.
        """
        if self.result is None:
            return {}
        checkpoint = self.result.checkpoint or checkpoint_digest(self.path)
        valid = {}
        for path in sorted((self.path / "scores").glob("*.npz")):
            scores = read_scores(path)
            check_single_label(scores, str(path))
            about = scores.about
            same_network = about.get("checkpoint") == checkpoint and about.get("rules") == SCORING_RULES
            if same_network and is_of_validation_images(about, self.config, self.result):
                valid[str(about.get("views"))] = scores
        return valid


def read_runs(patterns: Sequence[str]) -> list[Run]:
    """Reads the run directories that the patterns match, and those directly in the folders that they match.

    Raises ValueError for a pattern without any, unless decisions of transfer or detections are there, and for damaged
    files.
    """
    runs: dict[Path, Run] = {}
    for pattern in patterns:
        folders = matching_folders(pattern)
        configs = {folder: config for folder in folders if (config := read_run_config(folder)) is not None}
        if not configs and not hold_results(folders):
            raise ValueError(f"runs={pattern}: no run directories there")
        runs |= {folder: Run(folder, config, read_result(folder)) for folder, config in configs.items()}
    return list(runs.values())


def matching_folders(pattern: str) -> list[Path]:
    """Returns the folders that a pattern matches, each followed by those directly in it."""
    matches = [Path(match) for match in sorted(glob.glob(pattern)) if Path(match).is_dir()]
    return [folder for match in matches for folder in [match, *sorted(filter(Path.is_dir, match.iterdir()))]]


def hold_results(folders: Sequence[Path]) -> bool:
    """Whether any of the folders has decisions of transfer or detections, in a run directory or without one."""
    return any(transfer_files(folder) or detection_files(folder) for folder in folders)


def transfer_files(folder: Path) -> list[Path]:
    """Returns the files of decisions that `transfer` saved: below a run directory, its transfer/, or TITLE/ in that.

    A run directory here needs no config.yaml: those of networks that were not trained here have none.
    """
    if folder.parent.name == "transfer":
        places = [folder]
    else:
        top = folder if folder.name == "transfer" else folder / "transfer"
        places = sorted(filter(Path.is_dir, top.iterdir())) if top.is_dir() else []
    return [path for place in places for path in sorted(place.glob("*.npz")) if _DECISIONS.fullmatch(path.name)]


def detection_files(folder: Path) -> list[Path]:
    """Returns the files of detections below the run directory of a detector, or in its detections/."""
    place = folder if folder.name == "detections" else folder / "detections"
    return [path for path in sorted(place.glob("*.jsonl")) if path.name != OBJECTS_FILE]


def grouped(runs: Sequence[Run], *ignored: str) -> dict[str, list[Run]]:
    """Groups runs by their `setting`, each group sorted by seed.

    Raises ValueError if two finished runs share the whole setting and the seed: one training would count twice.
    """
    groups: dict[str, list[Run]] = {}
    trained: dict[tuple[str, int], Run] = {}
    for run in runs:
        groups.setdefault(run.setting(*ignored), []).append(run)
        if run.result is not None:
            first = trained.setdefault((run.setting(), int(run.config["seed"])), run)
            if first is not run:
                raise ValueError(
                    f"{first.path} and {run.path}: the same training with the same seed; name only one in runs=[...]"
                )
    return {key: sorted(group, key=lambda run: int(run.config["seed"])) for key, group in groups.items()}


def distinct_texts(runs: Sequence[Run], *ignored: str) -> list[str]:
    """Returns the `setting_text` of each run, and where several have the same, the settings in which they differ.

    Args:
        runs: of different settings.
        ignored: sections in which they may differ without that being shown.
    """
    texts = [run.setting_text() for run in runs]
    settings = [flat(json.loads(run.setting(*ignored))) for run in runs]
    distinct = []
    for text, own in zip(texts, settings, strict=True):
        alike = [other for other_text, other in zip(texts, settings, strict=True) if other_text == text]
        differing = [key for key in own if any(key not in other or other[key] != own[key] for other in alike)]
        distinct.append("; ".join([text, *(f"{key}={hydra_value(own[key])}" for key in differing)]))
    return distinct


@contextmanager
def naming_config(run: Run) -> Iterator[None]:
    """Around building the network of a run: turns any error into a ValueError that names its config.yaml."""
    try:
        yield
    except Exception as error:  # a configuration from anyone may ask for anything
        raise ValueError(
            f"{run.path / 'config.yaml'}: no network can be built from it ({first_line(error)})"
        ) from error
