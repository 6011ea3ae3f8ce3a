"""Combines detectors of several networks: their detections together, with duplicates suppressed once more."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import batched_nms

from sppnet.results.detections import Detections, ImageDetections, gather_detections
from sppnet.results.detector_runs import DetectorTest, TestedRow, by_row, protocol
from sppnet.results.object_files import SavedObjects
from sppnet.runtime.names import listing


class CombinedDetectors(NamedTuple):
    """Several detectors, and what their detections are worth together."""

    parts: list[TestedRow]  # of one run each
    row: TestedRow  # its `about` is that of the first part but for the row


def combined_detectors(text: str, tests: Sequence[DetectorTest]) -> CombinedDetectors:
    """Combines detectors as the paper does: all score every window, and duplicates are suppressed on the union.

    The detections that are combined were suppressed for each detector alone before.

    Args:
        text: names of two or more files of detections, joined by "+". A name is the end of the path of a file without
            ".jsonl", and may hold *: "a/detections/ftfc7_bb", "voc-zf5-*/detections/ftfc7".
        tests: where to look for them.

    Raises ValueError for names that do not fit exactly one file, and for detections of other images than the first's.
    """
    names = [name.strip() for name in text.split("+")]
    if len(names) < 2 or not all(names):
        raise ValueError(
            f"combine={text}: must be two or more names of detections joined by +, as in "
            "a/detections/ftfc7+b/detections/ftfc7"
        )
    parts = [_named(text, name, tests) for name in names]
    if len({part.path for part in parts}) < len(parts):
        raise ValueError(f"combine={text}: must not name the same detections twice")
    return combine_tests(parts)


def _named(text: str, name: str, tests: Sequence[DetectorTest]) -> DetectorTest:
    """Returns the only test whose path ends with `name`."""
    found = [test for test in tests if test.path.with_suffix("").match(name)]
    if not found:
        known = listing(sorted({test.path.stem for test in tests}))
        raise ValueError(f"combine={text}: no detections of {name}; there are {known}")
    if len(found) > 1:
        places = [test.path.with_suffix("") for test in found[:2]]
        raise ValueError(
            f"combine={text}: {name} is the name of {len(found)} files, such as {places[0]} and {places[1]}; give more "
            "of the path of one"
        )
    return found[0]


def combine_tests(parts: Sequence[DetectorTest]) -> CombinedDetectors:
    """Combines tests on the same images. Raises ValueError if images, objects or classes are others."""
    first = parts[0]
    for part in parts[1:]:
        if protocol(part.about) != protocol(first.about):
            raise ValueError(f"{first.path} and {part.path}: were trained or tested on different images or classes")

    def read() -> tuple[Detections, SavedObjects]:
        found, objects = zip(*(part.read() for part in parts), strict=True)
        return _union(found, first.about["suppression_overlap"], first.about["most"]), objects[0]

    rows = list(dict.fromkeys(part.about["row"] for part in parts))
    checkpoint = " + ".join(part.about["checkpoint"] for part in parts)
    about = first.about | {"row": " + ".join(rows), "checkpoint": checkpoint}
    test = DetectorTest(Path(checkpoint), about, read)
    return CombinedDetectors([by_row([part])[0] for part in parts], by_row([test])[0])


def _union(found: Sequence[Detections], overlap: float, most: int) -> Detections:
    """Returns the detections of several detectors in the same images, without those that a higher score suppresses."""
    images = [_union_in_image(of_image, overlap, most) for of_image in zip(*found, strict=True)]
    return gather_detections(images, found[0].classes, found[0].about)


def _union_in_image(found: Sequence[ImageDetections], overlap: float, most: int) -> ImageDetections:
    """As `_union`, in one image; at most `most` of a class stay."""
    labels, scores, boxes = (np.concatenate(arrays) for arrays in list(zip(*found, strict=True))[1:])
    tensors = (torch.from_numpy(array) for array in (boxes, scores, labels))
    kept = batched_nms(*tensors, overlap).numpy()  # highest score first
    kept = kept[_places_among_equal(labels[kept]) < most]
    return ImageDetections(found[0].name, labels[kept], scores[kept], boxes[kept])


def _places_among_equal(labels: np.ndarray) -> np.ndarray:
    """Returns for each label how many equal ones come before it: int64 (k,) -> int64 (k,)."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    places = np.empty(len(labels), np.int64)
    places[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return places
