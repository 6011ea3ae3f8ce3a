"""The runs that `evaluate` tests: finds them, reads their records, and checks the protocols for each."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sppnet.classify.schedules import Sizes
from sppnet.classify.views import ViewProtocol, in_pixels
from sppnet.commands.configs import CONFIGS
from sppnet.commands.settings import bound, plain
from sppnet.geometry import CROP_SIDE, LARGEST_SCALE
from sppnet.results.records import Result, read_result
from sppnet.runtime.names import listing
from sppnet.runtime.published import WEIGHTS_FILE, check_local, read_published
from sppnet.runtime.run_directory import checkpoint_file, read_run_config, run_of


class TestedRun(NamedTuple):
    """A run directory or a checkpoint, what its training recorded, and the protocols to test it by."""

    path: Path
    config: dict[str, Any] | None  # None for a checkpoint outside of a run directory
    result: Result | None  # of the run's end; None for such a checkpoint, and before training is finished
    protocols: dict[str, ViewProtocol]  # title -> in pixels
    shipped: set[str]  # titles of those that are as configs/views has them


def find_runs(run: Any) -> list[Path]:
    """Returns the run directories and checkpoints that `run` names: a path, a pattern, or a list of them.

    Of the folders that a pattern matches, those without a checkpoint are skipped, and named in one line.
    """
    patterns = [run] if isinstance(run, str) else run
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(one, str) and one for one in patterns):
        given = "null" if run is None else run
        raise ValueError(f"run={given}: must be a run directory, a checkpoint, a pattern, or a list of them: run=[A,B]")

    runs = []
    for pattern in patterns:
        check_local("run", pattern)
        paths = [Path(pattern)] if Path(pattern).exists() else _matching_runs(pattern)
        if not paths:
            raise ValueError(f"run={pattern}: no such run directory or checkpoint")
        runs += paths
    return list(dict.fromkeys(runs))


def _matching_runs(pattern: str) -> list[Path]:
    """Returns the run directories and files that a pattern matches. Prints which other folders it skips."""
    matches = [Path(match) for match in sorted(glob.glob(pattern))]
    skipped = [str(match) for match in matches if not checkpoint_file(match).is_file()]
    if skipped:
        print(f"run={pattern}: skipping what has no checkpoint, {listing(skipped)}", flush=True)
    return [match for match in matches if str(match) not in skipped]


def read_tested_run(config: DictConfig, path: Path) -> TestedRun:
    """Reads the records of a run and checks the protocols for it; loads no network."""
    if config.crop_side is not None and not 1 <= config.crop_side <= LARGEST_SCALE:
        raise ValueError(f"crop_side={config.crop_side}: must be from 1 to {LARGEST_SCALE}")
    recorded = run_of(path)
    trained = read_run_config(recorded)
    side = trained_crop_side(path)
    if side is None and config.crop_side is None and path.is_file():
        names = f"{path}: no config.yaml names its crop side"
        print(f"{names}; views are for crops of {CROP_SIDE}, or give crop_side=PIXELS")

    result = read_result(recorded) if recorded.is_dir() else None
    return TestedRun(path, trained, result, *read_protocols(config, side or CROP_SIDE))


def trained_crop_side(path: Path) -> int | None:
    """Returns the side in pixels of the largest crops of a training, from what is recorded beside its checkpoint.

    None for a checkpoint alone, outside of its run directory.
    """
    if (path / WEIGHTS_FILE).is_file():
        return int(read_published(path)["crop_side"])
    config = read_run_config(run_of(path))
    return (
        None
        if config is None
        else Sizes(cycle=config["sizes"].get("cycle"), uniform=config["sizes"].get("uniform")).largest
    )


def read_protocols(config: DictConfig, trained_side: int) -> tuple[dict[str, ViewProtocol], set[str]]:
    """Returns the protocols by title, and the titles of those that are as configs/views has them.

    Each protocol is at its own scales, or once at every one of `config.scales`. A title is the protocol's name and what
    differs from configs/views. Multiples such as "256/224" become pixels for crops of `config.crop_side`, or of
    `trained_side`.
    """
    if config.scales is not None and not config.scales:
        raise ValueError("scales=[]: must name at least one shorter side, as in scales=[224,256]; null: those of views")
    if any(not 1 <= scale <= LARGEST_SCALE for scale in config.scales or []):
        raise ValueError(f"scales={config.scales}: must be from 1 to {LARGEST_SCALE} pixels")

    side = config.crop_side or trained_side
    protocols: dict[str, ViewProtocol] = {}
    shipped = set()
    for name, section in config.views.items():
        given = plain(section) if isinstance(section, DictConfig) else section
        pixels = OmegaConf.create(in_pixels(given, side)) if isinstance(given, dict) else given
        protocol = ViewProtocol(**bound(pixels, ViewProtocol, f"views.{name}."))

        changes = _changed_settings(name, given) + ([f"crop_side={side}"] if side != trained_side else [])
        suffix = " with " + " ".join(changes) if changes else ""
        if config.scales is not None:
            protocols |= _at_scales(protocol, name, suffix, config.scales)
            continue
        protocols[name + suffix] = protocol
        if not changes:
            shipped.add(name)
    return protocols, shipped


def _at_scales(protocol: ViewProtocol, name: str, suffix: str, scales: list[int]) -> dict[str, ViewProtocol]:
    """Returns the protocol at each scale, by title. Prints the scales that its windows are too large for."""
    protocols = {}
    for scale in scales:
        if (at_scale := protocol.at(scale)) is None:
            print(f"{name} at {scale}: skipped, as its windows are {protocol.view_size} pixels wide")
        else:
            protocols[f"{name}-{scale}{suffix}"] = at_scale
    return protocols


def _changed_settings(name: str, section: dict[str, Any]) -> list[str]:
    """Returns what of a protocol differs from the one that configs/views has under this name, as KEY=VALUE."""
    file = CONFIGS / "views" / f"{name}.yaml"
    shipped = plain(OmegaConf.load(file)) if file.is_file() else {}  # type: ignore[arg-type]
    changed = {key: value for key, value in section.items() if value != shipped.get(key)}
    return [f"{key}={value}".replace(" ", "") for key, value in changed.items()]
