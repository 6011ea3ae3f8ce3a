"""Makes a store to train from at full speed: `sppnet prepare_data --help`."""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.settings import bound, bound_source, open_source, resolved
from sppnet.runtime.names import counted


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="prepare_data")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    with one_line_job("the same command resumes after the last finished shard"):
        prepare_data(**bound(resolved(config), settings))


def check(config: DictConfig) -> None:
    """Raises ValueError for a resolved configuration that cannot be used. Opens no data."""
    given = bound(config, settings)
    _check_out(given["out"])
    _jpeg_quality(given["format"], given["quality"])
    bound_source(config.data)


def _check_out(out: str) -> None:
    if "://" in out:
        raise ValueError(f"out={out}: must be a folder on this machine; docs/data.md says how to copy the store there")


def _jpeg_quality(format: str, quality: int | None) -> int | None:
    """Returns the quality of JPEG; None for format=raw. Raises ValueError for another format, and for both."""
    if format == "jpeg":
        return 95 if quality is None else quality
    if format != "raw":
        raise ValueError(f"format={format}: must be jpeg or raw")
    if quality is not None:
        raise ValueError(f"quality={quality}: is for format=jpeg; format=raw keeps the pixels as they are")
    return None


def settings(
    *,
    out: str,
    format: str,
    short_side: int,
    quality: int | None,
    exclude: list[str],
    workers: int | None,
    data: dict[str, Any],
) -> None:
    """The schema of configs/prepare_data.yaml."""


def prepare_data(
    *,
    out: str,
    format: str,
    short_side: int,
    quality: int | None,
    exclude: list[str],
    workers: int | None,
    data: dict[str, Any],
) -> None:
    """Checks every image of a data set, writes them into a store, and prints a report."""
    # Imported here because torch takes seconds, and --help should not.
    from sppnet.data.folders import ILSVRC_2012
    from sppnet.data.prepare import prepare
    from sppnet.data.shards import Settings
    from sppnet.data.sources import without_images
    from sppnet.data.stores import PAGE_FILE
    from sppnet.data.survey import report_text
    from sppnet.results.preparation_page import preparation_page
    from sppnet.runtime.machine import core_count

    _check_out(out)
    store_settings = Settings(short_side, _jpeg_quality(format, quality))
    source, options = bound_source(OmegaConf.create(data))
    images = without_images(open_source(source, options), exclude)

    counts = len(images.train), len(images.val)
    print(f"{source}: {counts[0]:,} + {counts[1]:,} images of {counted(len(images.classes), 'class')}", flush=True)
    if source == "imagenet" and counts != ILSVRC_2012:
        print("warning: ILSVRC 2012 has {:,} + {:,} images".format(*ILSVRC_2012))

    report = prepare(images, Path(out), store_settings, workers=core_count() if workers is None else workers)
    print(report_text(report))
    preparation_page(report, images).write_html(Path(out) / PAGE_FILE)
    print(f"written: {out}, with {PAGE_FILE}; train from it with data=prepared data.root={out}")


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
