"""Uses a trained detector on photos: `sppnet detect run=DETECTOR images=PLACE`."""

import math
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.settings import bound, plain
from sppnet.results.page import markdown_table
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.files import atomic_file, check_place
from sppnet.runtime.names import listing

if TYPE_CHECKING:
    from sppnet.data.folders import NamedFiles
    from sppnet.detect.detector import Detector
    from sppnet.detect.photos import Propose
    from sppnet.results.photo_boxes import PhotoBoxes

# The keys that are used with photos; all others are for training. Proposals may come from a file.
_KEYS = ("images", "run", "row", "score", "out", "page", "proposals", "hardware")


def check_photos(config: DictConfig) -> None:
    """Raises ValueError for a configuration with `images` that cannot be run. Opens no photo and loads no detector."""
    from sppnet.results.photo_boxes import FORMATS  # NumPy and torch take seconds, and --help should not
    from sppnet.runtime.hardware import Hardware

    if config.network is not None or config.get("data") is not None:
        raise ValueError(f"images={config.images}: uses a detector that is trained; network and data are to train one")
    if config.run is None:
        raise ValueError("run: missing; give run=RUN, the run directory of a detector, or run=FILE.ckpt")
    _check_other_keys(config)
    if config.score is not None and not math.isfinite(config.score):
        raise ValueError(f"score={config.score}: must be finite")
    for key, suffixes in (("out", list(FORMATS)), ("page", [".html"])):
        if config[key] is not None and Path(config[key]).suffix not in suffixes:
            raise ValueError(f"{key}={config[key]}: must end in {' or '.join(suffixes)}")

    _windows_of_file(config)
    hardware = Hardware(**bound(config.hardware, Hardware, "hardware."))
    if (hardware.devices or 1) > 1:
        raise ValueError(f"hardware.devices={hardware.devices}: photos are looked at on one device")


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


def _windows_of_file(config: DictConfig) -> "Propose | None":
    """Returns what looks up windows in a file of the user, None without one."""
    from sppnet.detect.window_files import WindowFile

    if config.proposals.get("proposer") != "file":
        return None
    options = OmegaConf.masked_copy(config.proposals, [key for key in config.proposals if key != "proposer"])
    return WindowFile(**bound(options, WindowFile, "proposals."))


def detect_photos(config: DictConfig) -> None:
    """Detects objects in the photos that a checked configuration names, and writes or prints the boxes.

    Exits with code 1 at the end if a photo could not be used.
    """
    from sppnet.data.photos import find_photos
    from sppnet.detect.detector import load_detector

    path = find_detector(Path(config.run), config.row)
    photos = find_photos(config.images)
    for place in filter(None, (config.out, config.page)):
        check_place(Path(place))
    detector = load_detector(path)
    score = _least_score(config.score, detector.test.least_score)
    work = _Work(config, path, detector, photos, _propose(config, detector), score)

    print(f"{path}: {len(detector.classes)} classes, {detector.network.summary()}", flush=True)
    started = time.perf_counter()
    seen = _detect(work)
    _show(work, seen, time.perf_counter() - started)
    if seen.unusable:
        names = listing([photo.name for photo in seen.unusable])
        print(f"warning: {len(seen.unusable):,} of {len(photos):,} photos could not be used: {names}", file=sys.stderr)
        sys.exit(1)


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


def _least_score(given: float | None, of_detector: float) -> float:
    """Returns the score from which boxes are shown. Raises ValueError for one below which there are none."""
    if given is None:
        return max(0.0, of_detector)
    if given < of_detector:
        raise ValueError(f"score={given}: must be at least {of_detector}, below which this detector keeps nothing")
    return given


def _propose(config: DictConfig, detector: "Detector") -> "Propose":
    """Returns what proposes the windows of a photo. Raises ValueError if nothing can."""
    from sppnet.detect.detector import proposed_windows

    if (given := _windows_of_file(config)) is not None:
        return given
    if detector.proposals.get("proposer") == "file":
        raise ValueError(
            "proposals: the detector was trained on windows of a file; give those of the photos by proposals=file "
            "proposals.path=FILE"
        )
    detector.proposer()
    return partial(proposed_windows, detector)


class _Work(NamedTuple):
    """What to detect, and by what."""

    config: DictConfig
    path: Path  # of the detector
    detector: "Detector"
    photos: "NamedFiles"
    propose: "Propose"
    score: float  # from which boxes are shown


class _Seen(NamedTuple):
    """What the photos so far held."""

    counts: list[int]  # of boxes, by photo
    highest: list[float]  # scores, by photo, also of boxes that were left out
    listed: "list[PhotoBoxes]"  # all photos, if they are shown in a table
    unusable: "list[PhotoBoxes]"
    pictures: list[tuple[bytes, str]]  # for the page


def _detect(work: _Work) -> _Seen:
    """Detects objects in all photos, and writes the boxes to the file `out`."""
    from sppnet.detect.photos import detect_in_photos
    from sppnet.results.photo_boxes import boxes_file
    from sppnet.results.photo_page import MOST_PICTURES, photo_picture
    from sppnet.runtime.hardware import Hardware, prepare_device
    from sppnet.runtime.progress import Progress

    out, page, seen = work.config.out, work.config.page, _Seen([], [], [], [], [])
    hardware = Hardware(**bound(work.config.hardware, Hardware, "hardware."))
    work.detector.network.to(prepare_device(0, hardware))
    arriving = detect_in_photos(
        work.detector,
        work.photos,
        work.propose,
        least_score=work.score,
        threads=max(1, hardware.loaders),
        autocast=hardware.autocast,
    )
    with ExitStack() as stack:
        write = stack.enter_context(boxes_file(Path(out))) if out else seen.listed.append
        progress = stack.enter_context(Progress("detecting", len(work.photos)))
        for found, image, highest in stack.enter_context(closing(arriving)):
            write(found)
            seen.counts.append(len(found.boxes))
            seen.highest.extend([] if highest is None else [highest])
            if found.error:
                seen.unusable.append(found)
            elif image is not None and page and len(seen.pictures) < MOST_PICTURES:
                seen.pictures.append(photo_picture(image, found))
            progress.add(1)
    return seen


def _show(work: _Work, seen: _Seen, seconds: float) -> None:
    """Prints a table of the boxes, or which files hold them, and writes the page."""
    from sppnet.results.photo_boxes import boxes_table
    from sppnet.results.photo_page import photo_page

    config, detector = work.config, work.detector
    if not config.out:
        print(markdown_table(*boxes_table(seen.listed)))
    count, boxes = len(seen.counts), sum(seen.counts)
    plurals = "es" * (boxes != 1), "s" * (count != 1)
    words = f"{boxes:,} box{plurals[0]} of score {work.score:g} or more in {count:,} photo{plurals[1]}"
    if config.page:
        about = f"{words}, found by `{work.path}`: {len(detector.classes)} classes, {detector.network.summary()}."
        with atomic_file(Path(config.page)) as file:
            file.write(photo_page(about, seen.pictures, count, seen.unusable).html().encode())

    print(f"{words}, {count / seconds:.3g} photos/s")
    if not boxes and seen.highest:
        print(f"the highest of all scores is {max(seen.highest):.4f}; a lower score=... shows more")
    if written := [place for place in (config.out, config.page) if place]:
        print(f"written: {', '.join(written)}")
