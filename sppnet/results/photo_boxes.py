"""The boxes that a detector finds in photos: written as JSON lines or CSV, or shown in a table.

Letters: k boxes of a photo. Boxes are half-open: x0, y0, x1, y1 in pixels counted from 0.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import printable


class PhotoBoxes(NamedTuple):
    """What was found in an image file, highest score first, or why nothing could be."""

    name: str
    size: tuple[int, int]  # (height, width) in pixels
    labels: np.ndarray  # int64 (k,)
    class_names: list[str]  # k, of the labels
    scores: np.ndarray  # float32 (k,)
    boxes: np.ndarray  # float32 (k, 4)
    error: str = ""  # why the file could not be used

    @classmethod
    def unusable(cls, name: str, error: str) -> "PhotoBoxes":
        """Returns the entry of a file that could not be used."""
        return cls(name, (0, 0), np.empty(0, np.int64), [], np.empty(0, np.float32), np.empty((0, 4)), error)

    def rows(self) -> list[dict[str, str | float]]:
        """Returns a row per box: its class, its score to four decimals, its sides in hundredths of a pixel."""
        rows: list[dict[str, str | float]] = []
        for name, score, box in zip(self.class_names, self.scores.tolist(), self.boxes.tolist(), strict=True):
            x0, y0, x1, y1 = (round(side, 2) for side in box)
            rows.append({"class": name, "score": round(score, 4), "x0": x0, "y0": y0, "x1": x1, "y1": y1})
        return rows


CSV_COLUMNS = ("image", "width", "height", "class", "score", "x0", "y0", "x1", "y1", "error")


def _json_line(photo: PhotoBoxes) -> str:
    height, width = photo.size
    found = {"width": width, "height": height, "boxes": photo.rows()}
    return f"{json.dumps({'image': photo.name, **({'error': photo.error} if photo.error else found)})}\n"


def _csv_lines(photo: PhotoBoxes) -> str:
    (height, width), name, text = photo.size, printable(photo.name), io.StringIO()
    rows = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    rows.writerows({"image": name, "width": width, "height": height, **row} for row in photo.rows())
    if photo.error:
        rows.writerow({"image": name, "error": photo.error})
    return text.getvalue()


# By the suffix of a file: what it begins with, and the lines of a photo.
FORMATS: dict[str, tuple[str, Callable[[PhotoBoxes], str]]] = {
    ".jsonl": ("", _json_line),
    ".csv": (f"{','.join(CSV_COLUMNS)}\n", _csv_lines),
}


@contextmanager
def boxes_file(path: Path) -> Iterator[Callable[[PhotoBoxes], object]]:
    """Opens a file of one of FORMATS, which gets its name when the block ends. Yields a function that adds a photo.

    JSON lines hold each photo, as {"image": NAME, "width": ..., "height": ..., "boxes": [...]}, or as {"image": NAME,
    "error": ...} if it could not be used. CSV holds each box, and each photo that could not be used.
    """
    header, lines = FORMATS[path.suffix]
    with atomic_file(path) as file:
        file.write(header.encode())
        yield lambda photo: file.write(lines(photo).encode())


def boxes_table(photos: Sequence[PhotoBoxes]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table: every box, and every photo without any."""
    rows = []
    for photo in photos:
        name = printable(photo.name)
        rows += [[name, *map(str, row.values())] for row in photo.rows()]
        if not len(photo.boxes):
            rows.append([name, photo.error or "nothing", "", "", "", "", ""])
    return ["image", "class", "score", "x0", "y0", "x1", "y1"], rows
