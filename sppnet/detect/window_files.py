"""Windows from a file of the user."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sppnet.detect.proposals import windows_inside
from sppnet.runtime.names import printable
from sppnet.runtime.rules import is_number


@dataclass(frozen=True, kw_only=True)
class WindowFile:
    """Windows from a file of the user: the `proposals` section.

    Each line of the file is the JSON of one image, {"image": NAME, "boxes": [[x0, y0, x1, y1], ...]}, with half-open
    boxes in pixels from 0, best first. Boxes are rounded outward to whole pixels and cut at the borders of the image.
    An empty list stands for the whole image.

    Raises OSError if the file cannot be read, and ValueError, with its name and line, for anything else than such
    lines, empty boxes, and two lines for one image; when called, for an image without a line or a box outside of it.
    """

    path: str

    ranked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._lines  # noqa: B018 (reads the file, so that its errors come at once)

    def settings(self) -> dict[str, Any]:
        return {"proposer": "file", "sha256": self._lines[1]}

    @cached_property
    def _lines(self) -> tuple[dict[str, tuple[int, np.ndarray]], str]:
        """The number of the line and the boxes, float64 (K, 4), of every image, and the hash of the file."""
        lines: dict[str, tuple[int, np.ndarray]] = {}
        digest = hashlib.sha256()
        with Path(self.path).open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if not line.strip():
                    continue
                try:
                    name, boxes = _parse_line(line)
                    if name in lines:
                        raise ValueError(f"found {name} a second time, first in line {lines[name][0]}")
                except (ValueError, RecursionError) as error:
                    raise ValueError(printable(f"{self.path}:{number}: {error}")) from error
                lines[name] = number, boxes
        return lines, digest.hexdigest()

    def __call__(self, image: Tensor, name: str = "image") -> np.ndarray:
        if name not in self._lines[0]:
            raise ValueError(printable(f"{self.path}: found no line for the image {name}"))
        number, boxes = self._lines[0][name]
        height, width = image.shape[1:]
        outside = (boxes[:, :2] >= [width, height]).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
        if outside.any():
            box = boxes[outside.argmax()].tolist()
            raise ValueError(
                printable(
                    f"{self.path}:{number}: found the box {box}, outside of {name}, which has {width} x {height} pixels"
                )
            )
        return windows_inside(np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1), image, name)


def _parse_line(line: bytes) -> tuple[str, np.ndarray]:
    """Parses a line of a WindowFile: the name of the image, and float64 (K, 4). Raises ValueError for other lines."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read as JSON: {error}") from error
    expected = 'expected {"image": NAME, "boxes": [[x0, y0, x1, y1], ...]}'
    if not isinstance(content, dict) or content.keys() != {"image", "boxes"}:
        raise ValueError(f"found {line[:60].rstrip()!r}, {expected}")
    name, boxes = content["image"], content["boxes"]
    if not isinstance(name, str) or not isinstance(boxes, list):
        raise ValueError(f"found {line[:60].rstrip()!r}, {expected}")

    corners = _array(boxes)
    inside_out = (corners[:, :2] >= corners[:, 2:]).any(axis=1)
    if inside_out.any():
        raise ValueError(f"found the box {boxes[inside_out.argmax()]}, expected x0 < x1 and y0 < y1")
    return name, corners


def _array(boxes: list[Any]) -> np.ndarray:
    """Converts boxes to float64 (K, 4). Raises ValueError for one that is not four numbers."""
    if not boxes:
        return np.empty((0, 4))
    with suppress(ValueError):  # boxes of different lengths
        array = np.array(boxes)
        if array.shape == (len(boxes), 4) and array.dtype.kind in "if" and (np.abs(array) < 1e15).all():
            return array.astype(np.float64)
    culprit = next(box for box in boxes if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))))
    raise ValueError(f"found the box {str(culprit)[:60]}, expected four numbers")
