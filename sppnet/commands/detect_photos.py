"""Uses a trained detector on photos: `sppnet detect run=DETECTOR images=PLACE`, or `sppnet predict`."""

import math
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.photos import (
    PhotoWork,
    check_photo_settings,
    open_photos,
    photo_hardware,
    photo_places,
    record_photos,
    report_photos,
)
from sppnet.commands.settings import bound, plain
from sppnet.results.page import markdown_table
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.names import counted
from sppnet.runtime.run_directory import checkpoint_digest

if TYPE_CHECKING:
    from sppnet.data.photos import Photos
    from sppnet.detect.detector import Detector
    from sppnet.detect.photos import Propose
    from sppnet.detect.window_files import WindowFile
    from sppnet.results.page import Page
    from sppnet.results.record_files import Record
    from sppnet.runtime.hardware import Hardware

# The keys that are used with photos; all others are for training. Proposals may come from a file.
_KEYS = ("images", "run", "row", "score", "out", "page", "proposals", "hardware")


def check_photos(config: DictConfig) -> None:
    """Raises ValueError for a configuration with `images` that cannot be run. Opens no photo and loads no detector."""
    if config.network is not None or config.get("data") is not None:
        raise ValueError(f"images={config.images}: uses a detector that is trained; network and data are to train one")
    if config.run is None:
        raise ValueError("run: missing; give run=RUN, the run directory of a detector, or run=FILE.ckpt")
    _check_other_keys(config)
    check_score("score", config.score)
    check_photo_settings(photo_places(config.images), config.out, config.page)
    _windows_of_file(config)
    photo_hardware(config.hardware)


def check_score(key: str, score: float | None) -> None:
    """Raises ValueError for a score that is not finite."""
    if score is not None and not math.isfinite(score):
        raise ValueError(f"{key}={score}: must be finite")


def _check_other_keys(config: DictConfig) -> None:
    """Raises ValueError for a setting of training that is not the default: it would do nothing."""
    defaults = dict(_flat(OmegaConf.load(CONFIGS / "detect.yaml")))
    for key, value in _flat(config):
        if key.partition(".")[0] not in _KEYS and value != defaults.get(key):
            raise ValueError(f"{key}={value}: is for training; a detector on images=... has its own settings")
    own = plain(config.proposals)
    if own.get("proposer") != "file" and own != OmegaConf.load(CONFIGS / "proposals" / "dense.yaml"):
        raise ValueError("proposals: are those that the detector was trained with, or your own by proposals=file")


def _flat(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns the values of a configuration with their dotted keys."""
    values = []
    for key, value in config.items():
        values += _flat(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [(f"{prefix}{key}", value)]
    return values


def _windows_of_file(config: DictConfig) -> "WindowFile | None":
    """Returns what looks up windows in a file of the user, None without one."""
    from sppnet.detect.window_files import WindowFile

    if config.proposals.get("proposer") != "file":
        return None
    options = OmegaConf.masked_copy(config.proposals, [key for key in config.proposals if key != "proposer"])
    return WindowFile(**bound(options, WindowFile, "proposals."))


class DetectorUse(NamedTuple):
    """What to detect with which detector, as the user gives it."""

    run: str  # a run directory, or the checkpoint of a detector
    row: str | None  # the name of the detector in a run directory
    images: Any
    score: float | None  # from which boxes are shown
    out: str | None
    page: str | None
    hardware: "Hardware"
    windows: "WindowFile | None" = None  # None: proposals as in training
    score_key: str = "score"


def detect_photos(config: DictConfig) -> None:
    """Detects objects in the photos that a checked configuration of `detect` names."""
    use_detector(
        DetectorUse(
            run=config.run,
            row=config.row,
            images=photo_places(config.images),
            score=config.score,
            out=config.out,
            page=config.page,
            hardware=photo_hardware(config.hardware),
            windows=_windows_of_file(config),
        )
    )


def use_detector(use: DetectorUse) -> None:
    """Detects objects in photos, and writes or prints the boxes.

    Exits with code 1 at the end if a photo could not be used.
    """
    from sppnet.detect.detector import load_detector

    path = find_detector(Path(use.run), use.row)
    photos = open_photos(use.images, use.out, use.page)
    detector = load_detector(path)
    score = _least_score(use.score_key, use.score, detector.test.least_score)
    propose = use.windows or _own_proposals(detector)
    print(f"{path}: {len(detector.classes)} classes, {detector.network.summary()}", flush=True)
    _detect(_Detection(use, path, detector, photos, propose, score))


def find_detector(run: Path, row: str | None) -> Path:
    """Finds the checkpoint of a detector, and says which one it took if there are several.

    Args:
        run: a run directory with detectors, or the checkpoint of one.
        row: the name of the detector in a run directory; None: the last one in the order of the paper's Table 9.

    Raises FileNotFoundError or ValueError if there is none.
    """
    from sppnet.results.detector_runs import row_order

    if run.is_file():
        if row is not None:
            raise ValueError(f"row={row}: is for a run directory, and run={run} is the file of one detector")
        return run
    if not run.is_dir():
        raise FileNotFoundError(f"run={run}: no such run directory or detector")
    rows = sorted((path.stem for path in (run / "detectors").glob("*.ckpt")), key=row_order)
    if not rows:
        raise ValueError(f"run={run}: no detectors there; {shown_command('detect')} network=RUN data=... trains them")
    if row is not None and row not in rows:
        raise ValueError(f"row={row}: no such detector in {run}; there are {', '.join(rows)}")
    if row is None and len(rows) > 1:
        print(f"row={rows[-1]}: the last one of {', '.join(rows)}")
    return run / "detectors" / f"{row or rows[-1]}.ckpt"


def _least_score(key: str, given: float | None, of_detector: float) -> float:
    """Returns the score from which boxes are shown. Raises ValueError for one below which there are none."""
    if given is None:
        return max(0.0, of_detector)
    if given < of_detector:
        raise ValueError(f"{key}={given}: must be at least {of_detector}, below which this detector keeps nothing")
    return given


def _own_proposals(detector: "Detector") -> "Propose":
    """Returns what proposes the windows of a photo as in training. Raises ValueError if nothing can."""
    from sppnet.detect.detector import proposed_windows

    if detector.proposals.get("proposer") == "file":
        raise ValueError(
            "proposals: the detector was trained on windows of a file; give those of the photos by "
            f"{shown_command('detect')} proposals=file proposals.path=FILE"
        )
    detector.proposer()
    return partial(proposed_windows, detector)


class _Detection(NamedTuple):
    use: DetectorUse
    path: Path  # of the detector
    detector: "Detector"
    photos: "Photos"
    propose: "Propose"
    score: float  # from which boxes are shown


def _detect(task: _Detection) -> None:
    """Detects objects in all photos; writes the boxes, or prints them in a table."""
    from sppnet.results.photo_boxes import BOXES_TABLE, boxes_table
    from sppnet.runtime.hardware import prepare_device

    use = task.use
    task.detector.network.to(prepare_device(0, use.hardware))
    listed: list[Record] = []
    highest: list[float] = []
    work = PhotoWork(
        title="detecting",
        photos=task.photos,
        out=use.out,
        page=use.page,
        table=BOXES_TABLE,
        identity={
            "detector": checkpoint_digest(task.path),
            "score": task.score,
            "precision": str(use.hardware.autocast),
            "proposals": None if use.windows is None else use.windows.settings(),
        },
        make=lambda start: _records(task, start, highest),
        show=lambda record: None if use.out else listed.append(record),
        counted=lambda record: len(record.get("boxes", ())),
        make_page=partial(_page, task),
    )

    recorded = record_photos(work)
    if not use.out:
        print(markdown_table(*boxes_table(listed)))
    if not recorded.counted and highest:
        print(f"the highest of all scores is {max(highest):.4f}; a lower {use.score_key}=... shows more")
    report_photos(work, recorded, _words(task, recorded.counted))


def _words(task: _Detection, boxes: int) -> str:
    photos = len(task.photos)
    return f"{counted(boxes, 'box')} of score {task.score:g} or more in {counted(photos, 'photo')}"


def _page(task: _Detection, boxes: int, records: "Iterable[Record]") -> "Page":
    from sppnet.results.photo_page import WITH_BOXES, boxes_picture, photo_page

    classes, network = task.detector.classes, task.detector.network.summary()
    about = f"{_words(task, boxes)}, found by `{task.path}`: {len(classes)} classes, {network}."
    draw = partial(boxes_picture, classes=classes)
    return photo_page("Objects found in photos", about, task.photos, records, draw, WITH_BOXES)


def _records(task: _Detection, start: int, highest: list[float]) -> "Generator[Record, None, None]":
    """Yields the records of the photos from `start` on, and adds the highest score of each to `highest`."""
    from sppnet.detect.photos import detect_in_photos

    hardware = task.use.hardware
    arriving = detect_in_photos(
        task.detector,
        task.photos,
        task.propose,
        least_score=task.score,
        threads=max(1, hardware.loaders),
        autocast=hardware.autocast,
        start=start,
    )
    with closing(arriving):
        for photo in arriving:
            highest.extend([] if photo.highest is None else [photo.highest])
            yield photo.record
