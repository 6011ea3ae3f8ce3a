"""Detects objects in many photos, one after the other, and reads the next ones meanwhile."""

import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.data.folders import NamedFiles
from sppnet.data.images import decode_image
from sppnet.detect.detector import Detector, detect_image
from sppnet.results.photo_boxes import PhotoBoxes
from sppnet.runtime.names import first_line, printable

# Proposes windows of an image and its name: uint8 (3, h, w) -> (K, 4).
Propose = Callable[[Tensor, str], np.ndarray]


class DetectedPhoto(NamedTuple):
    """A photo with what was found in it."""

    found: PhotoBoxes
    image: Tensor | None  # uint8 (3, h, w); None if it could not be read
    highest: float | None  # score, also of boxes that were left out; None without any


def detect_in_photos(
    detector: Detector,
    photos: NamedFiles,
    propose: Propose,
    *,
    least_score: float,
    threads: int,
    autocast: torch.dtype | None,
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
    """
    with closing(_read_ahead(photos, propose, threads)) as arriving:
        for name, ready in arriving:
            image = None
            try:
                image, windows = ready.result()
                boxes, labels, scores = detect_image(detector, image, windows=windows, name=name, autocast=autocast)
            except ValueError as error:
                yield DetectedPhoto(PhotoBoxes.unusable(name, printable(first_line(error))), image, None)
                continue

            highest = float(scores[0]) if len(scores) else None
            kept = scores >= least_score
            labels, scores, boxes = (values[kept].cpu() for values in (labels, scores, boxes))
            names = [detector.classes[label] for label in labels.tolist()]
            size = image.shape[1], image.shape[2]
            found = PhotoBoxes(name, size, labels.numpy(), names, scores.numpy(), boxes.numpy())
            yield DetectedPhoto(found, image, highest)


def _read_ahead(
    photos: NamedFiles, propose: Propose, threads: int
) -> Generator[tuple[str, Future[tuple[Tensor, np.ndarray]]], None, None]:
    """Yields the name of every photo, and its image and windows when they are ready; a few photos ahead."""

    def read(index: int, name: str) -> tuple[Tensor, np.ndarray]:
        image = decode_image(photos.read(index), name)
        return image, propose(image, name)

    waiting: deque[tuple[str, Future[tuple[Tensor, np.ndarray]]]] = deque()
    # Decoding changes the filters of warnings, which all threads share, and restores them in any order.
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        for index in range(len(photos)):
            name = photos.name(index)
            waiting.append((name, pool.submit(read, index, name)))
            if len(waiting) > threads:
                yield waiting.popleft()
        yield from waiting
