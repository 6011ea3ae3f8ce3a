"""Detections of a test set, saved as JSON lines and as VOC result files.

Letters: n images, K detections in all of them. Boxes are half-open: x0, y0, x1, y1 in pixels counted from 0.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line, printable


class ImageDetections(NamedTuple):
    """The detections in one image."""

    name: str  # of the image
    labels: np.ndarray  # int64 (k,)
    scores: np.ndarray  # float32 (k,), higher for detections more likely to be right
    boxes: np.ndarray  # float32 (k, 4)


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections in all images of a test set, image after image.

    names: of all n images, also of those without detections.
    classes: what the labels index.
    images: int64 (K,), indices of images in ascending order.
    labels: int64 (K,).
    scores: float32 (K,), finite.
    boxes: float32 (K, 4), finite, x0 <= x1 and y0 <= y1.
    about: plain values: where the detections come from.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[ImageDetections]:
        ends = np.searchsorted(self.images, np.arange(len(self.names) + 1))
        for name, start, end in zip(self.names, ends, ends[1:], strict=False):
            yield ImageDetections(name, self.labels[start:end], self.scores[start:end], self.boxes[start:end])


def gather_detections(
    found: Iterable[ImageDetections], classes: Sequence[str], about: dict[str, Any] | None = None
) -> Detections:
    """Puts the detections of images together. Raises ValueError, with the name, for those that break `Detections`."""
    images = list(found)
    for one in images:
        _check(one, len(classes))
    if len({one.name for one in images}) != len(images):
        raise ValueError("detections: an image is there twice")
    return Detections(
        tuple(one.name for one in images),
        tuple(classes),
        np.repeat(np.arange(len(images)), [len(one.labels) for one in images]),
        np.concatenate([np.empty(0, np.int64), *(np.asarray(one.labels, np.int64) for one in images)]),
        np.concatenate([np.empty(0, np.float32), *(np.asarray(one.scores, np.float32) for one in images)]),
        np.concatenate([np.empty((0, 4), np.float32), *(np.asarray(one.boxes, np.float32) for one in images)]),
        about or {},
    )


def _check(one: ImageDetections, classes: int) -> None:
    """Raises ValueError unless labels, scores and boxes are those of `Detections`."""
    labels, scores, boxes = map(np.asarray, one[1:])
    k = len(labels)
    if labels.shape != (k,) or scores.shape != (k,) or boxes.shape != (k, 4):
        shapes = f"labels {labels.shape}, scores {scores.shape} and boxes {boxes.shape}"
        raise ValueError(printable(f"{one.name}: has {shapes}, must be (k,), (k,) and (k, 4)"))
    if k and not (np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0 and labels.max() < classes):
        raise ValueError(printable(f"{one.name}: has labels that are no whole numbers from 0 to {classes - 1}"))
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
        raise ValueError(printable(f"{one.name}: has scores or boxes that are not finite, or boxes inside out"))


# Files. The first line is {"about": ..., "classes": ..., "images": n}, every other one an image:
# {"name": ..., "labels": [...], "scores": [...], "boxes": [[x0, y0, x1, y1], ...]}.


def write_detections(
    path: Path, found: Iterable[ImageDetections], *, classes: Sequence[str], images: int, about: dict[str, Any]
) -> None:
    """Writes a file of JSON lines atomically, image by image: `found` may be a generator that detects.

    Args:
        path: the file.
        found: the detections of every image; a `Detections` is one, too.
        classes: what the labels index.
        images: how many images there are.
        about: plain values: where the detections come from.

    Raises ValueError for detections that break `Detections`, and if there are more or fewer images.
    """
    with atomic_file(path) as file:
        file.write(_line({"about": about, "classes": list(classes), "images": images}))
        count = 0
        for one in found:
            count += 1
            _check(one, len(classes))
            # A float32 in decimals of float64 comes back exactly.
            labels, scores, boxes = (np.asarray(array).tolist() for array in one[1:])
            file.write(_line({"name": one.name, "labels": labels, "scores": scores, "boxes": boxes}))
        if count != images:
            raise ValueError(f"{path}: detections of {count:,} images, must be of {images:,}")


def _line(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, separators=(',', ':'))}\n".encode()


def read_detections(path: Path) -> Detections:
    """Reads a file that `write_detections` wrote. Raises ValueError, naming file and line, for anything else."""
    found: list[ImageDetections] = []
    number = 1
    try:
        with path.open("rb") as file:
            about, classes, count = _read_header(next(file, b""))
            for line in file:
                number += 1
                found.append(_read_image(line))
                _check(found[-1], len(classes))
        if len(found) != count:
            raise ValueError(f"detections of {len(found):,} images, must be of {count}")
        return gather_detections(found, classes, about)
    except KeyError as error:
        raise ValueError(f"{path}:{number}: not a file of detections ({error} is missing)") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(printable(f"{path}:{number}: not a file of detections ({first_line(error)})")) from error


def read_detections_about(path: Path) -> dict[str, Any]:
    """Reads `Detections.about` alone. Raises ValueError, naming the file, if the first line is another one."""
    try:
        with path.open("rb") as file:
            about, _, _ = _read_header(next(file, b""))
        return about
    except KeyError as error:
        raise ValueError(f"{path}:1: not a file of detections ({error} is missing)") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(printable(f"{path}:1: not a file of detections ({first_line(error)})")) from error


def _read_header(line: bytes) -> tuple[dict[str, Any], list[str], Any]:
    first = json.loads(line)
    about, classes = first["about"], first["classes"]
    if (
        not isinstance(about, dict)
        or not isinstance(classes, list)
        or not all(isinstance(name, str) for name in classes)
    ):
        raise ValueError("about must be keys with values, and classes a list of text")
    return about, classes, first["images"]


def _read_image(line: bytes) -> ImageDetections:
    content = json.loads(line)
    if not isinstance(content["name"], str):
        raise ValueError("name must be text")
    labels, boxes = np.array(content["labels"]), np.array(content["boxes"], np.float32)
    if labels.dtype.kind not in ("i", "f" if not labels.size else "i"):
        raise ValueError("labels must be whole numbers")
    return ImageDetections(
        content["name"],
        labels.astype(np.int64),
        np.array(content["scores"], np.float32),
        boxes.reshape(len(boxes), 4),
    )


def write_voc_results(folder: Path, detections: Detections, split: str = "test") -> list[Path]:
    """Writes comp3_det_SPLIT_CLASS.txt for every class, as the VOC devkit reads them, and returns the files.

    A line is the image's name without folders and suffix, the score, and the box in VOC's pixels, which count from 1
    and include the last one: x0 + 1, y0 + 1, x1, y1.

    Raises ValueError if two images would have the same name.
    """
    names = [Path(name).stem for name in detections.names]
    if len(set(names)) != len(names):
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{repeated}: two images have this name, and VOC result files name images without folders")

    files = []
    boxes = detections.boxes + np.array([1.0, 1.0, 0.0, 0.0])
    for label, class_name in enumerate(detections.classes):
        files.append(folder / f"comp3_det_{split}_{class_name}.txt")
        with atomic_file(files[-1]) as file:
            for i in np.flatnonzero(detections.labels == label).tolist():
                numbers = " ".join(f"{value:.9g}" for value in (detections.scores[i], *boxes[i]))
                file.write(f"{names[detections.images[i]]} {numbers}\n".encode())
    return files
