"""The data that a trained network is tested on or explained with: that of its run, or other data."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from sppnet.commands.evaluated_runs import TestedRun
from sppnet.commands.settings import bound_source, named_keys, plain
from sppnet.data.sources import DATA_SOURCES, ImageData, has_fixed_parts, open_data, open_unsplit
from sppnet.runtime.published import recorded_data
from sppnet.runtime.run_directory import is_published, with_absolute_places


def data_section(given: DictConfig | None, run: TestedRun) -> dict[str, Any]:
    """Returns the data to test on: the one given, or that of the training with the given keys changed.

    A published network knows how its images were split, not where they are. Folders and files become absolute. Raises
    ValueError if neither names the data.
    """
    section = {key: value for key, value in plain(given).items() if value is not None} if given else {}
    section = with_absolute_places(section)
    if "source" in section:
        return section
    if run.config is not None:
        return {**run.config["data"], **section}
    recorded = recorded_data(run.path) if is_published(run.path) else None
    if recorded is None:
        raise ValueError(f"{run.path}: has no config.yaml that names its data; give data=GROUP and its keys")
    place = "file" if recorded["source"] == "table" else "root"
    if place not in section:
        raise ValueError(
            f"{run.path}: was trained on data={recorded['source']}; give data.{place}=PATH, where its images are now, "
            "or data=GROUP and its keys"
        )
    del recorded["fingerprint"]
    return {**recorded, **section}


def open_tested_data(config: DictConfig, section: dict[str, Any], run: TestedRun) -> ImageData:
    """Opens the data of a `data_section`. With part=all, images that have no parts of their own are not split.

    Raises what is wrong with the data, and ValueError for a test on a random share of it that nobody asked for.
    """
    source, options = bound_source(OmegaConf.create(section))
    with named_keys(data=DATA_SOURCES[source]):
        data = (open_unsplit if config.part == "all" else open_data)(source, **options)
    if source in ("folder", "table") and config.part != "all" and not has_fixed_parts(source, options):
        _check_split(config, section, run, data)
    return data


def _check_split(config: DictConfig, section: dict[str, Any], run: TestedRun, data: ImageData) -> None:
    """Raises ValueError if a test would be on a random share of images that is not the run's validation data.

    A share that was asked for by data.val_fraction is fine.
    """
    asked = config.data is not None and config.data.get("val_fraction") is not None
    as_trained = run.config is not None and section == run.config["data"]
    if asked or as_trained or data.fingerprint() == _trained_fingerprint(run):
        return
    place = f"data.file={section['file']}" if section["source"] == "table" else f"data.root={section['root']}"
    part = "val_file or split_column" if section["source"] == "table" else "val/ part"
    raise ValueError(
        f"{place}: has no {part}; give part=all to test on all of it, or data.val_fraction=0.2 to test on a fifth"
    )


def _trained_fingerprint(run: TestedRun) -> str | None:
    """Returns the fingerprint of the data that the network was trained on, where that is recorded."""
    if is_published(run.path):
        return (recorded_data(run.path) or {}).get("fingerprint")
    return None if run.result is None else run.result.data_fingerprint
