"""Detects objects in many photos, one after the other, and reads the next ones meanwhile."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.data.photos import Photos, read_ahead
from sppnet.detect.detector import Detector, detect_image
from sppnet.results.photo_boxes import boxes_record
from sppnet.results.record_files import Record, error_record
from sppnet.runtime.names import first_line, printable

# Proposes windows of an image and its name: uint8 (3, h, w) -> (K, 4).
Propose = Callable[[Tensor, str], np.ndarray]


class DetectedPhoto(NamedTuple):
    """A photo with what was found in it."""

    record: Record  # of `boxes_record`, or of `error_record` if the photo could not be used
    highest: float | None  # score, also of boxes that were left out; None without any


def detect_in_photos(
    detector: Detector,
    photos: Photos,
    propose: Propose,
    *,
    least_score: float,
    threads: int,
    autocast: torch.dtype | None,
    start: int = 0,
) -> Generator[DetectedPhoto, None, None]:
    """Yields the boxes found in every photo, in their order. Close it to end its threads.

    A photo that cannot be read, or that raises another ValueError, is yielded with the error.

    Args:
        detector: on its device.
        photos: the files.
        propose: proposes the windows.
        least_score: boxes with lower scores are left out.
        threads: that read photos and propose windows, while the network runs.
        autocast: the dtype of the network, or None for float32.
        start: index of the first photo.
    """

    def prepare(image: Tensor, name: str) -> tuple[Tensor, np.ndarray]:
        return image, propose(image, name)

    with closing(read_ahead(photos, prepare, threads=threads, start=start)) as arriving:
        for name, ready in arriving:
            try:
                image, windows = ready.result()
                boxes, labels, scores = detect_image(detector, image, windows=windows, name=name, autocast=autocast)
            except ValueError as error:
                yield DetectedPhoto(error_record(name, printable(first_line(error))), None)
                continue

            highest = float(scores[0]) if len(scores) else None
            kept = scores >= least_score
            labels, scores, boxes = (values[kept].cpu() for values in (labels, scores, boxes))
            names = [detector.classes[label] for label in labels.tolist()]
            size = image.shape[1], image.shape[2]
            yield DetectedPhoto(boxes_record(name, size, names, scores.numpy(), boxes.numpy()), highest)
