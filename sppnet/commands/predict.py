"""Predicts the classes of photos, or finds objects in them: `sppnet predict --help`."""

from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.detect_photos import DetectorUse, check_score, use_detector
from sppnet.commands.evaluated_runs import read_tested_run
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.photos import (
    PhotoWork,
    check_photo_settings,
    check_photos_exist,
    open_photos,
    photo_hardware,
    photo_places,
    record_photos,
    report_photos,
)
from sppnet.commands.settings import bound, resolved
from sppnet.runtime.names import listing, printable
from sppnet.runtime.published import is_hub_address, local_folder, parse_hub_address
from sppnet.runtime.run_directory import checkpoint_digest, checkpoint_file

if TYPE_CHECKING:
    from sppnet.classify.scorer import Scorer
    from sppnet.classify.views import ViewProtocol
    from sppnet.data.photos import Photos
    from sppnet.network import SPPNet
    from sppnet.results.page import Page
    from sppnet.results.record_files import Record

_SCORES = ("probabilities", "logits")
_DAMAGED = "the network is damaged, or diverged in training"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="predict")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    with one_line_job("the same command resumes" if config.get("out") else "no file was written"):
        predict(resolved(config))


def settings(
    *,
    run: str,
    images: Any,
    out: str | None,
    page: str | None,
    min_score: float | None,
    top: int,
    scores: str,
    views: dict[str, Any] | None = None,
    crop_side: int | None,
    row: str | None,
    hardware: dict[str, Any],
) -> None:
    """The schema of configs/predict.yaml; sections are checked against the functions that take them."""


def check(config: DictConfig) -> None:
    """Raises ValueError for a resolved configuration that cannot be run. Opens no photo and loads no network."""
    config = OmegaConf.create(bound(config, settings))
    if config.top < 1:
        raise ValueError(f"top={config.top}: must be at least 1")
    if config.scores not in _SCORES:
        raise ValueError(f"scores={config.scores}: must be {' or '.join(_SCORES)}")
    if config.get("views") and len(config.views) != 1:
        raise ValueError(f"views={list(config.views)}: must be one protocol, as in views=ten_crop")
    check_score("min_score", config.min_score)
    _check_run(config)
    check_photo_settings(photo_places(config.images), config.out, config.page)
    photo_hardware(config.hardware)
    if not is_hub_address(config.run) and not _names_detector(config):
        _check_for_classifier(config)
        if config.get("views"):
            _read_protocol(config, config.views)


def _check_run(config: DictConfig) -> None:
    """Raises an error for a `run` that holds no network."""
    run = Path(config.run)
    if is_hub_address(config.run):
        parse_hub_address(config.run)
    elif not run.exists():
        raise FileNotFoundError(f"run={run}: no such run directory or checkpoint")
    elif run.suffix in (".onnx", ".pt2"):
        raise ValueError(f"run={run}: is an exported file; give the run directory or checkpoint that it was made from")
    elif not checkpoint_file(run).is_file() and not any((run / "detectors").glob("*.ckpt")):
        there = sorted(str(path) for path in run.iterdir() if checkpoint_file(path).is_file() and path.is_dir())
        found = f"; there is {listing(there)}" if there else ""
        raise FileNotFoundError(f"run={run}: no such run directory with a checkpoint, or detector{found}")


def _names_detector(config: DictConfig) -> bool:
    """Whether `run` is a detector, rather than a classifier."""
    from sppnet.detect.detector import is_detector

    run = Path(config.run)
    return is_detector(run) if run.is_file() else any((run / "detectors").glob("*.ckpt"))


def _check_for_classifier(config: DictConfig) -> None:
    """Raises ValueError for a setting that does not suit classifiers."""
    if config.row is not None:
        raise ValueError(f"row={config.row}: is for detectors, and run={config.run} is a classifier")
    if config.scores == "probabilities" and config.min_score is not None and not 0 <= config.min_score <= 1:
        raise ValueError(f"min_score={config.min_score}: must be from 0 to 1, as scores are probabilities")


def _read_protocol(config: DictConfig, views: DictConfig) -> tuple[str, "ViewProtocol"]:
    """Returns the views by which a classifier is to look at photos, and their title."""
    tested = read_tested_run(OmegaConf.create({**config, "views": views, "scales": None}), Path(config.run))
    ((title, protocol),) = tested.protocols.items()
    return title, protocol


def _default_views(network: "SPPNet") -> DictConfig:
    """Returns the whole image, as a section of views; the centre crop for a network without a pyramid."""
    name = "center" if network.levels is None else "full"
    return OmegaConf.create({name: OmegaConf.load(CONFIGS / "views" / f"{name}.yaml")})


def predict(config: DictConfig) -> None:
    """Predicts what a resolved configuration asks for, and writes or prints it."""
    check_photos_exist(config.get("images"))
    check(config)

    config = OmegaConf.create(bound(config, settings))
    config.run = str(local_folder(config.run))
    if _names_detector(config):
        _detect(config)
    else:
        _classify(config)


def _detect(config: DictConfig) -> None:
    """Finds objects in all photos by a detector."""
    _check_for_detector(config)
    use = DetectorUse(
        run=config.run,
        row=config.row,
        images=photo_places(config.images),
        score=config.min_score,
        out=config.out,
        page=config.page,
        hardware=photo_hardware(config.hardware),
        score_key="min_score",
    )
    use_detector(use)


def _check_for_detector(config: DictConfig) -> None:
    """Raises ValueError for a setting of classifiers that is not the default: it would do nothing."""
    for key, default in {"top": 5, "scores": "probabilities", "crop_side": None}.items():
        if config[key] != default:
            raise ValueError(f"{key}={config[key]}: is for classifiers, and run={config.run} is a detector")
    if config.get("views"):
        raise ValueError(f"views={next(iter(config.views))}: is for classifiers, and run={config.run} is a detector")


class _Prediction(NamedTuple):
    config: DictConfig
    title: str  # of the protocol
    scorer: "Scorer"
    classes: list[str]
    photos: "Photos"

    @property
    def top(self) -> int:
        """How many classes are listed."""
        return min(self.config.top, len(self.classes))

    @property
    def network_text(self) -> str:
        """Describes the network and how it looks at photos."""
        protocol, network = self.scorer.protocol, self.scorer.network
        count, precision = len(self.classes), "float32" if self.scorer.autocast is None else "bf16"
        classes = f"{count:,} class{'es' * (count != 1)}"
        return f"{classes}, {network.summary()}; {self.title}: {protocol.text()}, {precision}"


def _classify(config: DictConfig) -> None:
    """Predicts the classes of all photos by a classifier."""
    from sppnet.classify.scorer import Scorer
    from sppnet.network import load_network
    from sppnet.runtime.hardware import prepare_device

    _check_for_classifier(config)
    photos = open_photos(photo_places(config.images), config.out, config.page)
    network, hardware = load_network(config.run), photo_hardware(config.hardware)
    title, protocol = _read_protocol(config, config.get("views") or _default_views(network))
    network.to(prepare_device(0, hardware))
    logits = config.scores == "logits"
    scorer = Scorer(network, protocol, pixels=hardware.pixels, autocast=hardware.autocast, logits=logits)
    classes = list(network.classes or map(str, range(network.num_classes)))
    task = _Prediction(config, title, scorer, classes, photos)

    print(f"{config.run}: {task.network_text}", flush=True)
    work = _work(task, threads=max(1, hardware.loaders))
    recorded = record_photos(work)
    report_photos(work, recorded, _words(task, recorded.counted))


def _work(task: _Prediction, threads: int) -> PhotoWork:
    from sppnet.results.predictions import PredictionLines, is_unsure, prediction_table
    from sppnet.results.scores import SCORING_RULES

    config, photos = task.config, task.photos
    lines = PredictionLines([photos.name(i) for i in range(len(photos))], task.classes)
    if not config.out:
        print(lines.header(), flush=True)
    return PhotoWork(
        title="predicting",
        photos=photos,
        out=config.out,
        page=config.page,
        table=prediction_table(task.top),
        identity={
            "rules": SCORING_RULES,
            "checkpoint": checkpoint_digest(Path(config.run)),
            "protocol": vars(task.scorer.protocol),
            "precision": str(task.scorer.autocast),
            "settings": [config.scores, task.top, config.min_score],
        },
        make=partial(_records, task, threads),
        show=lambda record: None if config.out else print(lines.line(record), flush=True),
        counted=lambda record: is_unsure(record, config.min_score),
        make_page=partial(_page, task),
    )


def _records(task: _Prediction, threads: int, start: int) -> "Generator[Record, None, None]":
    """Yields the records of the photos from `start` on."""
    import numpy as np
    import torch

    from sppnet.classify.photos import score_photos
    from sppnet.results.predictions import prediction_record
    from sppnet.results.record_files import error_record

    scorer, config = task.scorer, task.config
    autocast = torch.autocast(scorer.device.type, scorer.autocast, enabled=scorer.autocast is not None)
    # Around the whole loop, autocast converts each weight once instead of once per photo.
    with autocast, closing(score_photos(scorer, task.photos, threads=threads, start=start)) as scored:
        for photo in scored:
            if photo.scores is None:
                yield error_record(photo.name, photo.error)
                continue
            scores = photo.scores.numpy()
            if not np.isfinite(scores).all():
                yield error_record(photo.name, f"{printable(photo.name)}: its scores are not finite; {_DAMAGED}")
                continue
            yield prediction_record(
                photo.name, photo.size, scores, task.classes, top=task.top, min_score=config.min_score
            )


def _words(task: _Prediction, unsure: int) -> str:
    count, least = len(task.photos), task.config.min_score
    doubtful = f", {unsure:,} of them unsure with a score below {least:g}" if least is not None else ""
    return f"{count:,} photo{'s' * (count != 1)}{doubtful}"


def _page(task: _Prediction, unsure: int, records: "Iterable[Record]") -> "Page":
    from sppnet.results.photo_page import THUMBNAIL, photo_page, predicted_picture

    about = f"{_words(task, unsure)}. Classes and {task.config.scores} by `{task.config.run}`: {task.network_text}."
    return photo_page("Predictions", about, task.photos, records, predicted_picture, THUMBNAIL)


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
