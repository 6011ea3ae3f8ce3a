"""Finished and unfinished runs as they lie on disk, grouped by what may be compared."""

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sppnet.results.records import SCORING_RULES, Result, Scores, is_of_validation_images, read_result, read_scores
from sppnet.runtime.names import first_line
from sppnet.runtime.run_directory import checkpoint_digest, read_run_config, without_folders

# What the paper compares, in the order in which it is shown.
VARIANTS = {
    "none": "no SPP",
    "single": "SPP, one size",
    "30bins": "SPP of 30 bins, one size",
    "random": "SPP, random sizes",
    "alternate": "SPP, two sizes",
}


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory: what was trained, its result once it is finished, and the scores of its tests."""

    path: Path
    config: dict[str, Any]
    result: Result | None

    @property
    def architecture(self) -> str:
        """A name of BACKBONES, or of the timm model."""
        backbone = self.config["backbone"]
        return str(backbone.get("name") or backbone["architecture"])

    @property
    def on_imagenet(self) -> bool:
        return bool(self.config["data"]["source"] == "imagenet")

    @property
    def levels(self) -> tuple[int, ...] | None:
        levels = self.config["pooling"]["levels"]
        return None if levels is None else tuple(levels)

    @property
    def sizes(self) -> list[int | str]:
        """What was trained at, such as [224, 180] or ["random", 180, 224]."""
        sizes = self.config["sizes"]
        return list(sizes.get("cycle") or ["random", *sizes["uniform"]])

    @property
    def variant(self) -> str | None:
        """The key of VARIANTS that this run is of, or None."""
        random, several = self.sizes[0] == "random", len(self.sizes) > 1
        if self.levels is None:
            return "none"
        if self.levels == (6, 3, 2, 1):
            return "random" if random else "alternate" if several else "single"
        return "30bins" if self.levels == (4, 3, 2, 1) and not several else None

    def setting(self, *but: str) -> str:
        """All that two runs must share to be compared: their configuration without the seed and the sections `but`."""
        config = {key: value for key, value in self.config.items() if key not in {"seed", *but}}
        return json.dumps({**config, "data": without_folders(self.config["data"])}, sort_keys=True)

    def setting_text(self) -> str:
        backbone, recipe, data = (self.config[section] for section in ("backbone", "recipe", "data"))
        options = [f"{k} {v}" for k, v in backbone.items() if k not in {"architecture", "name", "pretrained"}]
        options.append(f"hidden {self.config['hidden']}")
        return (
            f"{self.architecture} on {data['source']} ({', '.join(options)}; "
            f"{recipe['epochs']} epochs, batch {recipe['batch_size']}, rate {recipe['learning_rate']:g})"
        )

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """By the title of the protocol: tests of the finished run on exactly its validation images.

        Scores made by the rules of another version are not among them.
        """
        if self.result is None:
            return {}
        # Scores of an earlier checkpoint are not of this run.
        checkpoint = self.result.checkpoint or checkpoint_digest(self.path)
        found = {}
        for path in sorted((self.path / "scores").glob("*.npz")):
            scores = read_scores(path)
            about = scores.about
            same_network = about.get("checkpoint") == checkpoint and about.get("rules") == SCORING_RULES
            if same_network and is_of_validation_images(about, self.config, self.result):
                found[str(about.get("views"))] = scores
        return found


def read_runs(patterns: Sequence[str]) -> list[Run]:
    """The run directories that the patterns match, and those that lie in the folders they match.

    Raises ValueError for a pattern without any, and for damaged files.
    """
    runs: dict[Path, Run] = {}
    for pattern in patterns:
        places = [Path(place) for place in sorted(glob.glob(pattern)) if Path(place).is_dir()]
        folders = [folder for place in places for folder in [place, *sorted(filter(Path.is_dir, place.iterdir()))]]
        found = {folder: config for folder in folders if (config := read_run_config(folder)) is not None}
        if not found:
            raise ValueError(f"runs={pattern}: no run directories there")
        runs |= {folder: Run(folder, config, read_result(folder)) for folder, config in found.items()}
    return list(runs.values())


def grouped(runs: Sequence[Run], *but: str) -> dict[str, list[Run]]:
    """Runs that share their `setting`.

    Raises ValueError where two finished runs share all of it and the seed: one training would count twice.
    """
    groups: dict[str, list[Run]] = {}
    trained: dict[tuple[str, int], Run] = {}
    for run in runs:
        groups.setdefault(run.setting(*but), []).append(run)
        if run.result is not None:
            first = trained.setdefault((run.setting(), int(run.config["seed"])), run)
            if first is not run:
                raise ValueError(
                    f"{first.path} and {run.path}: the same training with the same seed; name only one in runs=[...]"
                )
    return {key: sorted(group, key=lambda run: int(run.config["seed"])) for key, group in groups.items()}


@contextmanager
def naming_config(run: Run) -> Iterator[None]:
    """Where a network cannot be built from the configuration of a run, a ValueError names the file."""
    try:
        yield
    except Exception as error:  # the configuration of a stranger may ask for anything
        raise ValueError(
            f"{run.path / 'config.yaml'}: no network can be built from it ({first_line(error)})"
        ) from error
