"""Makes a store to train from at full speed: python scripts/prepare_data.py --help."""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.errors import CONFIGS
from sppnet.commands.settings import bound, bound_choice, one_line_job, resolved, run_main


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="prepare_data")
def main(config: DictConfig) -> None:
    with one_line_job("the same command resumes after the last finished shard"):
        prepare_data(**bound(resolved(config), settings))


def check(config: DictConfig) -> None:
    """Raises what is wrong with a resolved configuration. Opens no data."""
    from sppnet.data.sources import DATA_SOURCES

    bound(config, settings)
    bound_choice(config.data, "source", DATA_SOURCES, "data.")


def settings(
    *, out: str, short_side: int, quality: int, exclude: list[str], workers: int | None, data: dict[str, Any]
) -> None:
    """The schema of configs/prepare_data.yaml."""


def prepare_data(
    *, out: str, short_side: int, quality: int, exclude: list[str], workers: int | None, data: dict[str, Any]
) -> None:
    # Imported here because torch takes seconds, and --help should not.
    from sppnet.data.folders import ILSVRC_2012
    from sppnet.data.prepare import prepare
    from sppnet.data.shards import Settings
    from sppnet.data.sources import DATA_SOURCES, open_data, without_images
    from sppnet.data.survey import report_text
    from sppnet.runtime.machine import core_count

    stored_as = Settings(short_side, quality)
    source, options = bound_choice(OmegaConf.create(data), "source", DATA_SOURCES, "data.")
    images = without_images(open_data(source, **options), exclude)
    print(f"{source}: {len(images.train):,} + {len(images.val):,} images of {len(images.classes)} classes", flush=True)
    found = (len(images.train), len(images.val))
    if source == "imagenet" and found != ILSVRC_2012:
        print("warning: ILSVRC 2012 has {:,} + {:,} images".format(*ILSVRC_2012))
    report = prepare(images, Path(out), stored_as, workers=core_count() if workers is None else workers)
    print(report_text(report))
    print(f"written: {out}; train from it with data=prepared data.root={out}")


def command() -> None:
    run_main(main)
