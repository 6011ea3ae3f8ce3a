"""The data that a trained network is tested on or explained with: that of its run, or other data."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sppnet.commands.evaluated_runs import TestedRun
from sppnet.commands.settings import bound_source, plain
from sppnet.data.folders import unsplit_folder, val_folders
from sppnet.data.sources import ImageData, open_data


def data_section(given: DictConfig | None, run: TestedRun) -> dict[str, Any]:
    """Returns the data to test on: the one given, or that of the run with the given keys changed.

    Roots become absolute. Raises ValueError if neither names the data.
    """
    section = {key: value for key, value in plain(given).items() if value is not None} if given else {}
    if isinstance(section.get("root"), str) and "://" not in section["root"]:
        section["root"] = os.path.abspath(section["root"])
    if "source" in section:
        return section
    if run.config is None:
        raise ValueError(f"{run.path}: has no config.yaml that names its data; give data=GROUP and its keys")
    return {**run.config["data"], **section}


def open_tested_data(config: DictConfig, section: dict[str, Any], run: TestedRun) -> ImageData:
    """Opens the data of a `data_section`. With part=all, a folder of class folders is opened without splitting it.

    Raises what is wrong with the data, and ValueError for a test on a share of a folder that nobody asked for.
    """
    source, options = bound_source(OmegaConf.create(section))
    if source == "folder" and config.part == "all" and not _has_parts(Path(options["root"])):
        everything, nothing = unsplit_folder(root=options["root"], classes=options.get("classes"))
        data = ImageData(everything, nothing, everything.classes)
    else:
        data = open_data(source, **options)
    _check_split(config, section, run, data)
    return data


def _has_parts(root: Path) -> bool:
    """Whether a folder has train/, val/, validation/ or test/, rather than class folders."""
    return bool(val_folders(root)) or (root / "train").is_dir()


def _check_split(config: DictConfig, section: dict[str, Any], run: TestedRun, data: ImageData) -> None:
    """Raises ValueError if the test would be on a share of a folder that is not the run's validation data.

    A share that was asked for by data.val_fraction is fine.
    """
    split = section["source"] == "folder" and config.part != "all" and not val_folders(Path(section["root"]))
    asked = config.data is not None and config.data.get("val_fraction") is not None
    as_trained = run.config is not None and section == run.config["data"]
    same_data = run.result is not None and data.fingerprint() == run.result.data_fingerprint
    if split and not (asked or as_trained or same_data):
        raise ValueError(
            f"data.root={section['root']}: has no val/ part; give part=all to test on all of it, or "
            "data.val_fraction=0.2 to test on a fifth"
        )
