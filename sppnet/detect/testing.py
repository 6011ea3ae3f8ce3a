"""Tests detectors on all images of a split, several at once where they share pooled windows.

Letters: K windows of an image, D detections.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sppnet.detect.detector import (
    BoxRegressors,
    LinearSvms,
    detect_in_features,
    head_of,
    layer_length,
    layers_to_pool,
)
from sppnet.detect.suppression import SuppressionSettings
from sppnet.detect.windows import WindowsOfImages
from sppnet.network import SPPNet
from sppnet.results.detections import Detections, ImageDetections, read_detections, write_detections
from sppnet.runtime.devices import sent_to
from sppnet.runtime.progress import Progress

_IMAGES_PER_PART = 50  # which are tested again after an interruption, at most


class DetectorRow(NamedTuple):
    """A row of a table: the SVMs on a layer of a network, box regressors or None, and whether windows are warped."""

    name: str
    network: SPPNet
    svms: LinearSvms
    regressors: BoxRegressors | None
    warped: bool = False


def detect_by_rows(
    data: WindowsOfImages,
    rows: Sequence[DetectorRow],
    settings: SuppressionSettings,
    folder: Path,
    *,
    about: dict[str, Any],
    autocast: torch.dtype | None,
) -> list[Detections]:
    """Detects objects in all images by every row, and writes `folder`/ROW.jsonl.

    Detections of 50 images at a time are kept in `folder`/parts until all images are done: an interrupted test resumes.

    Args:
        data: the images to test on.
        rows: the detectors.
        settings: what becomes of the scores.
        folder: of the files.
        about: plain values to save with the detections; parts with other ones are made again.
        autocast: the dtype of the fully connected layers, or None for float32.

    Returns the detections of each row.
    """
    starts = range(0, len(data), _IMAGES_PER_PART)
    with Progress("testing", len(data)) as progress:
        for start in starts:
            indices = range(start, min(start + _IMAGES_PER_PART, len(data)))
            if not all(_is_done(folder, row, start, about) for row in rows):
                _test_part(data, rows, settings, folder, indices, about, autocast)
            progress.add(len(indices))

    found = []
    for row in rows:
        parts = (one for start in starts for one in read_detections(_part(folder, row, start)))
        path = folder / f"{row.name}.jsonl"
        write_detections(path, parts, classes=data.classes, images=len(data), about=about | {"row": row.name})
        found.append(read_detections(path))
    for path in sorted((folder / "parts").glob("*.jsonl")):
        path.unlink()
    return found


def _part(folder: Path, row: DetectorRow, start: int) -> Path:
    return folder / "parts" / f"{row.name}-{start}.jsonl"


def _is_done(folder: Path, row: DetectorRow, start: int, about: dict[str, Any]) -> bool:
    """Whether the detections of a part are there, whole, and of the same settings."""
    try:
        return read_detections(_part(folder, row, start)).about == about
    except (FileNotFoundError, ValueError):
        return False


def _test_part(
    data: WindowsOfImages,
    rows: Sequence[DetectorRow],
    settings: SuppressionSettings,
    folder: Path,
    indices: range,
    about: dict[str, Any],
    autocast: torch.dtype | None,
) -> None:
    """Writes the detections of some images by every row."""
    found: list[list[ImageDetections]] = [[] for _ in rows]
    for index in indices:
        for of_row, detections in zip(found, _detect_in_image(data, rows, settings, index, autocast), strict=True):
            of_row.append(detections)
    for row, of_row in zip(rows, found, strict=True):
        path = _part(folder, row, indices.start)
        write_detections(path, of_row, classes=data.classes, images=len(of_row), about=about)


def _detect_in_image(
    data: WindowsOfImages,
    rows: Sequence[DetectorRow],
    settings: SuppressionSettings,
    index: int,
    autocast: torch.dtype | None,
) -> Iterator[ImageDetections]:
    """Yields the detections in an image by every row. Rows of one kind of features share them."""
    windows = data.windows(index)
    for group in _by_features(rows):
        network, features_of = group[0].network, data.warped_one_by_one() if group[0].warped else data
        layers = layers_to_pool(row.svms.layer for row in group)
        lengths = [layer_length(network, layer) for layer in layers]
        parts = features_of.features(index, windows, head_of(network, layers, autocast)).split(lengths, dim=1)
        features = dict(zip(layers, parts, strict=True))
        boxes = sent_to(torch.from_numpy(windows), parts[0].device)

        for row in group:
            found = detect_in_features(features, boxes, data.size(index), row.svms, row.regressors, settings)
            labels, scores, found_boxes = (values.cpu().numpy() for values in (found.labels, found.scores, found.boxes))
            yield ImageDetections(data.images.name(index), labels, scores, found_boxes)


def _by_features(rows: Sequence[DetectorRow]) -> list[list[DetectorRow]]:
    """Groups rows that follow each other by their network, and by whether windows are warped."""
    groups: list[list[DetectorRow]] = []
    for row in rows:
        if not groups or groups[-1][0].network is not row.network or groups[-1][0].warped != row.warped:
            groups.append([])
        groups[-1].append(row)
    return groups
