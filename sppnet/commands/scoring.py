"""Opens the data that `evaluate` tests on, and scores runs on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf

from sppnet.classify.evaluator import evaluate_to_file
from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import TestedRun
from sppnet.commands.naming import content_hash
from sppnet.commands.settings import plain
from sppnet.commands.tested_data import data_section, open_tested_data
from sppnet.data.sources import ImageData, content_digests, images_fingerprint, select_images
from sppnet.network import load_network
from sppnet.results.scores import Scores, is_of_validation_images
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.names import counted
from sppnet.runtime.overrides import hydra_value
from sppnet.runtime.run_directory import checkpoint_digest, folder_beside, is_published


class OpenData(NamedTuple):
    """A data set to test on."""

    section: dict[str, Any]  # as a run's config.yaml has it
    data: ImageData
    digests: np.ndarray  # uint8 (n, 16): `content_digests` of the images that are tested


def score_run(
    config: DictConfig, run: TestedRun, hardware: Hardware, opened: dict[str, OpenData]
) -> Iterator[tuple[str, Scores]]:
    """Tests a run by its protocols and yields (title, scores).

    Args:
        opened: data sets by section, kept for the next run.
    """
    network = load_network(run.path)
    test = _open_test_data(config, run, opened)
    images = select_images(test.data, config.part, config.exclude, network.classes)
    source = test.section["source"]
    print(f"{run.path}: {network.summary()}; {counted(len(images), 'image')} of {source} ({config.part})", flush=True)

    about = {
        "data": test.section,
        "part": config.part,
        "exclude": sorted(config.exclude),
        "images": images_fingerprint(images, test.digests),
        "run": str(run.path),
        "network": network.summary(),
        "classes": list(images.classes),
    }
    on_validation = run.config is not None and is_of_validation_images(about, run.config, run.result)
    data_words = "" if on_validation else _data_text(config)
    _print_notes(run, on_validation or bool(data_words))

    checkpoint = checkpoint_digest(run.path)
    for title, protocol in run.protocols.items():
        if unsuited := protocol.unsuited_to(network):
            print(f"{title}: skipped, as a network without a pyramid cannot be tested on {unsuited}")
            continue

        digest = content_hash({"protocol": vars(protocol), "images": about["images"]})
        name = title if on_validation and title in run.shipped else f"{title.split()[0]}-{digest}"
        scores = evaluate_to_file(
            _scores_folder(config.scores, run.path) / f"{name}.npz",
            network,
            images,
            test.digests,
            protocol,
            hardware,
            title=title + data_words,
            checkpoint=checkpoint,
            about={**about, "views": title},
        )
        yield title, scores


def _print_notes(run: TestedRun, expected: bool) -> None:
    """Prints why tables will skip the scores of a run directory.

    Args:
        expected: whether the images are those of the run's validation, or others that were asked for.
    """
    if is_published(run.path):
        return
    if run.path.is_dir() and run.result is None:
        print(f"{run.path}: has not finished training; this tests its last checkpoint, and tables will skip it")
    elif run.path.is_dir() and not expected:
        print(f"{run.path}: its validation images have changed since training; tables will skip these scores")


def _scores_folder(given: str | None, run: Path) -> Path:
    return folder_beside(run, "scores") if given is None else Path(given)


def _open_test_data(config: DictConfig, run: TestedRun, opened: dict[str, OpenData]) -> OpenData:
    """Opens the data and hashes the images to test, unless an earlier run was tested on the same."""
    section = data_section(config.data, run)
    key = str(section)
    if key in opened:
        return opened[key]

    data = open_tested_data(config, section, run)
    images = select_images(data, config.part, config.exclude)
    opened[key] = OpenData(section, data, content_digests(images, "reading the images"))
    return opened[key]


def _data_text(config: DictConfig) -> str:
    """Returns what was given of the data, the part and the exclusions, as on the command line, without defaults."""
    given = {key: value for key, value in plain(config.data).items() if value is not None} if config.data else {}
    words, defaults = [], {}
    if (source := given.pop("source", None)) is not None:
        words.append(f"data={source}")
        defaults = plain(OmegaConf.load(CONFIGS / "data" / f"{source}.yaml"))  # type: ignore[arg-type]
    changed = {key: value for key, value in given.items() if value != defaults.get(key)}
    words += [f"data.{k}={hydra_value(v) if isinstance(v, list) else v}" for k, v in changed.items()]

    if config.part != "val":
        words.append(f"part={config.part}")
    if config.exclude:
        words.append(f"exclude=[{','.join(config.exclude[:3])}{',...' if len(config.exclude) > 3 else ''}]")
    return " on " + " ".join(words) if words else ""
