"""From a trained classifier to tested detectors: every stage in its order, each resumed if it was interrupted."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppnet.data.objects import AnnotatedImages, DetectionSplits, objects_fingerprint
from sppnet.data.sources import content_digests
from sppnet.detect.detector import (
    LAYERS,
    BoxRegressors,
    Detector,
    layer_length,
    load_detector,
    save_detector,
)
from sppnet.detect.finetuning import finetune, with_background
from sppnet.detect.finetuning_windows import FinetuneSettings, LabelledWindows, WindowsToTuneOn, labelled_windows
from sppnet.detect.map_files import compute_maps
from sppnet.detect.maps import WindowRules
from sppnet.detect.mining import SvmSettings
from sppnet.detect.proposal_files import compute_proposals
from sppnet.detect.proposals import Proposer
from sppnet.detect.recall import recall
from sppnet.detect.suppression import SuppressionSettings
from sppnet.detect.testing import DetectorRow, detect_by_rows
from sppnet.detect.training import RegressionSettings, train_regressors, train_svms
from sppnet.detect.windows import DrawnWindows, WindowsOfImages
from sppnet.network import SPPNet, load_network, save_network, weights_digest
from sppnet.results.detection_pictures import pictures_file, write_pictures
from sppnet.results.detections import Detections
from sppnet.results.object_files import OBJECTS_FILE, write_objects
from sppnet.results.precisions import match_detections
from sppnet.runtime.environment import environment
from sppnet.runtime.files import write_json
from sppnet.runtime.hardware import Hardware


class Row(NamedTuple):
    """A row of the paper's Table 9: ftfc7_bb is fc7 of the fine-tuned network, with box regression.

    In rcnn_fc7 windows are warped to 224 x 224 and convolved one by one, as R-CNN does.
    """

    name: str
    finetuned: bool
    layer: str
    regressed: bool
    warped: bool = False

    @classmethod
    def parse(cls, name: str) -> "Row":
        """Reads a name. Raises ValueError for any that is none."""
        match = re.fullmatch(r"(ft|rcnn_)?(pool5|fc6|fc7)(_bb)?", name)
        if match is None or (match[1] == "ft" and match[2] == "pool5"):
            raise ValueError(
                f"rows: {name} must be one of {', '.join(LAYERS)}, ftfc6 or ftfc7, with _bb for box regression; "
                "or rcnn_pool5, rcnn_fc6 or rcnn_fc7 for R-CNN's way, with or without _bb"
            )
        return cls(name, match[1] == "ft", match[2], bool(match[3]), match[1] == "rcnn_")


@dataclass(frozen=True, kw_only=True)
class DetectionPlan:
    """Everything that decides a detector besides the network and the data."""

    rows: tuple[Row, ...]
    rules: WindowRules
    proposer: Proposer
    most_windows: int  # of an image
    finetune: FinetuneSettings
    svm: SvmSettings
    regression: RegressionSettings
    test: SuppressionSettings
    aligned: bool  # whether images go through `network.aligned()`
    use_difficult: bool  # whether difficult objects are trained on
    tune_fraction: float  # share of the training images on which fine-tuning is validated
    seed: int
    hardware: Hardware


def train_and_test(
    network: SPPNet, splits: DetectionSplits, plan: DetectionPlan, run: Path, cache: Path, *, about: dict[str, Any]
) -> list[Detections]:
    """Trains the detectors of all rows, saves them in `run`/detectors, and tests them.

    Args:
        network: a trained classifier, in eval mode.
        splits: images to train on and to test on.
        plan: the settings.
        run: the run directory.
        cache: folder of proposals and maps, which other runs use as well.
        about: plain values to save with the detections.

    Returns the detections of each row on the test images, which are also in `run`/detections.

    Raises ValueError if the data is not what an interrupted run began with, for rows of layers that the network does
    not have, and what its stages raise.
    """
    _check_rows(plan.rows, network)
    network = network.aligned().eval() if plan.aligned else network
    _check_data(splits, run)
    mirrored = _finetunes(plan.rows) or plan.svm.mirrored
    train = _windows_of(splits.train, network, plan, cache, "training images", mirrored=mirrored)
    tuned = _finetuned(network, train, plan, run) if _finetunes(plan.rows) else network
    rows = _trained_rows(network, tuned, train, plan, run)

    test = _windows_of(splits.test, network, plan, cache, "test images", mirrored=False)
    about = {**about, **environment(gpus=1), **_about(network, splits, plan), "recall": _recall(test)}
    folder = run / "detections"
    found = detect_by_rows(test, rows, plan.test, folder, about=about, autocast=plan.hardware.autocast)
    write_objects(folder / OBJECTS_FILE, splits.test)
    for row, detections in zip(rows, found, strict=True):
        matches = match_detections(detections, splits.test)
        write_pictures(pictures_file(folder / f"{row.name}.jsonl"), matches, splits.test)
    return found


def _about(network: SPPNet, splits: DetectionSplits, plan: DetectionPlan) -> dict[str, Any]:
    """Returns what tables need to know of detections besides the row, the record of the network and the data."""
    proposals = plan.proposer.settings() | {"most": plan.most_windows}
    parts = {name: asdict(getattr(plan, name)) for name in ("rules", "finetune", "svm", "regression", "test")}
    others = {name: getattr(plan, name) for name in ("aligned", "use_difficult", "tune_fraction")}
    return {
        "checkpoint": weights_digest(network),
        "seed": plan.seed,
        "setting": json.dumps({"proposals": proposals, **parts, **others}, sort_keys=True),
        "scales": list(plan.rules.scales),
        "lengths": {layer: layer_length(network, layer) for layer in LAYERS if layer in network.layers},
        "proposals": proposals,
        "suppression_overlap": plan.test.suppression_overlap,
        "most": plan.test.most,
        "n_train": len(splits.train),
        "objects": objects_fingerprint(splits.test),
    }


def _recall(test: WindowsOfImages) -> list[dict[str, Any]]:
    """Returns the entries of `recall` of the proposals as plain values; none without objects that count."""
    every = [test.images.objects(index) for index in range(len(test))]
    if all(objects.difficult.all() for objects in every):
        return []
    windows = (test.windows(index) for index in range(len(test)))
    found = recall(windows, (objects.boxes for objects in every), (objects.difficult for objects in every))
    return [entry._asdict() for entry in found]


def _finetunes(rows: Sequence[Row]) -> bool:
    return any(row.finetuned for row in rows)


def _check_data(splits: DetectionSplits, run: Path) -> None:
    """Raises ValueError if the run began with other names or objects; notes them if it has not begun."""
    found = hashlib.sha256("".join(objects_fingerprint(images) for images in splits).encode()).hexdigest()
    path = run / "data.json"
    if not path.exists():
        write_json(path, {"fingerprint": found})
    elif (before := json.loads(path.read_text())["fingerprint"]) != found:
        raise ValueError(
            f"{run}: the data has changed since the run began; its fingerprint was {before} and is {found}"
        )


def _check_rows(rows: Sequence[Row], network: SPPNet) -> None:
    """Raises ValueError for a row that needs fc6 and fc7, if the network is a linear classifier."""
    needing = [row.name for row in rows if row.layer != "pool5"]
    if network.hidden is None and needing:
        raise ValueError(
            f"rows: {needing[0]} needs fc6 and fc7, and this network was built with hidden=null, a linear classifier "
            "on the pyramid; use rows=[pool5,pool5_bb]"
        )


def _windows_of(
    images: AnnotatedImages, network: SPPNet, plan: DetectionPlan, cache: Path, title: str, *, mirrored: bool
) -> WindowsOfImages:
    """Computes the proposals and the maps of images, or finds them in the cache."""
    digests = content_digests(images, f"reading the {title}")

    proposals = compute_proposals(
        images,
        plan.proposer,
        cache / "proposals",
        digests=digests,
        workers=plan.hardware.workers,
        seed=plan.seed,
        most=plan.most_windows,
    )

    maps = compute_maps(
        network,
        images,
        plan.rules.scales,
        cache / "maps",
        mirrored=mirrored,
        digests=digests,
        hardware=plan.hardware,
        title=f"maps of the {title}",
    )

    network = network.to(plan.hardware.device)
    return WindowsOfImages(
        images, proposals, maps, network, plan.rules, plan.use_difficult, autocast=plan.hardware.autocast
    )


def _finetuned(network: SPPNet, train: WindowsOfImages, plan: DetectionPlan, run: Path) -> SPPNet:
    """Returns the fine-tuned network: trained now, or loaded if that is done."""
    path = run / "finetuned.ckpt"
    if path.exists():
        return load_network(path).to(plan.hardware.device)

    drawn = DrawnWindows(train)
    is_validation = np.zeros(len(train), bool)
    order = np.random.default_rng(plan.seed).permutation(len(train))
    is_validation[order[: max(1, round(plan.tune_fraction * len(train)))]] = True
    highest = [train.overlaps(index, drawn.windows(index))[0] for index in range(len(train))]
    train_windows = _labelled(highest, ~is_validation, plan.finetune)
    validation_windows = _labelled(highest, is_validation, plan.finetune)
    drawn.keep(_used(len(train), train_windows, validation_windows), int(1e9 * plan.finetune.gigabytes))
    tuned = with_background(network, train.classes, dropout=plan.finetune.dropout, seed=plan.seed)

    finetune(
        tuned,
        WindowsToTuneOn(train_windows, drawn),
        WindowsToTuneOn(validation_windows, drawn),
        plan.finetune,
        run,
        hardware=plan.hardware,
        seed=plan.seed,
    )
    save_network(tuned, path)
    return tuned.to(plan.hardware.device)


def _labelled(highest: list[np.ndarray], chosen: np.ndarray, settings: FinetuneSettings) -> LabelledWindows:
    """Returns the labelled windows of the chosen images; the others keep their indices and have none."""
    used = [of_image if use else of_image[:0] for of_image, use in zip(highest, chosen, strict=True)]
    return labelled_windows(used, settings)


def _used(images: int, *splits: LabelledWindows) -> list[np.ndarray]:
    """Returns for each image the indices of the windows that fine-tuning draws."""
    drawn = np.concatenate([rows[:, :2] for split in splits for rows in split])
    return [drawn[drawn[:, 0] == image, 1] for image in range(images)]


def _trained_rows(
    network: SPPNet, tuned: SPPNet, train: WindowsOfImages, plan: DetectionPlan, run: Path
) -> list[DetectorRow]:
    """Returns the detectors of all rows: trained now, or loaded if they are saved."""
    paths = [run / "detectors" / f"{row.name}.ckpt" for row in plan.rows]
    if not all(path.exists() for path in paths):
        trained = _train_rows(network, tuned, train, plan, run)
        for one, path in zip(trained, paths, strict=True):
            save_detector(_detector(one, train.classes, plan), path)
    rows = []
    for row, path in zip(plan.rows, paths, strict=True):
        saved = load_detector(path)
        used = tuned if row.finetuned else network
        rows.append(DetectorRow(row.name, used, saved.svms, saved.regressors, row.warped))
    return rows


def _train_rows(
    network: SPPNet, tuned: SPPNet, train: WindowsOfImages, plan: DetectionPlan, run: Path
) -> list[DetectorRow]:
    """Trains the detectors of all rows, one kind of features after the other."""
    trained: dict[str, DetectorRow] = {}
    for name, is_tuned, is_warped in (("frozen", False, False), ("finetuned", True, False), ("rcnn", False, True)):
        rows = [row for row in plan.rows if (row.finetuned, row.warped) == (is_tuned, is_warped)]
        if not rows:
            continue
        used, data = tuned if is_tuned else network, train.warped_one_by_one() if is_warped else train
        layers = sorted({row.layer for row in rows})
        svms = train_svms(
            data, used, layers, plan.svm, run / "svms" / name, autocast=plan.hardware.autocast, seed=plan.seed
        )

        regressors: BoxRegressors | None = None
        if any(row.regressed for row in rows):
            # Fine-tuning does not change the pooled windows that regressors are trained on.
            folder = run / ("regression_rcnn" if is_warped else "regression")
            regressors = train_regressors(data, plan.regression, folder, seed=plan.seed)
        for row in rows:
            of_layer = svms[layers.index(row.layer)]
            trained[row.name] = DetectorRow(row.name, used, of_layer, regressors if row.regressed else None, is_warped)
    return [trained[row.name] for row in plan.rows]


def _detector(row: DetectorRow, classes: tuple[str, ...], plan: DetectionPlan) -> Detector:
    return Detector(
        network=row.network,
        classes=classes,
        svms=row.svms,
        regressors=row.regressors,
        rules=plan.rules,
        aligned=plan.aligned,
        warped=row.warped,
        test=plan.test,
        proposals=plan.proposer.settings() | {"most": plan.most_windows, "seed": plan.seed},
    )
