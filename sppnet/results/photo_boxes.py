"""The boxes that a detector finds in photos: as records for files, and in a table.

Letters: k boxes of a photo. Boxes are half-open: x0, y0, x1, y1 in pixels counted from 0.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from sppnet.results.record_files import Record, Table
from sppnet.runtime.names import printable


def boxes_record(
    name: str, size: tuple[int, int], classes: Sequence[str], scores: np.ndarray, boxes: np.ndarray
) -> Record:
    """Returns the record of a photo: {"image", "width", "height", "boxes": [{"class", "score", "x0", ...}, ...]}.

    Args:
        name: of the photo.
        size: (height, width) in pixels.
        classes: k names, one for each box.
        scores: float32 (k,), highest first; written with four decimals.
        boxes: float32 (k, 4); written in hundredths of a pixel.
    """
    found = []
    for of_box, score, box in zip(classes, scores.tolist(), boxes.tolist(), strict=True):
        x0, y0, x1, y1 = (round(side, 2) for side in box)
        found.append({"class": of_box, "score": round(score, 4), "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return {"image": name, "width": size[1], "height": size[0], "boxes": found}


def _rows(record: Record) -> list[Record]:
    photo = {key: value for key, value in record.items() if key != "boxes"}
    return [photo] if "error" in record else [photo | box for box in record["boxes"]]


# A row per box, and per photo that could not be used.
BOXES_TABLE = Table(
    {"image": str, "width": int, "height": int, "class": str}
    | dict.fromkeys(("score", "x0", "y0", "x1", "y1"), float)
    | {"error": str},
    _rows,
)


def boxes_table(records: Iterable[Record]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table: every box, and every photo without any."""
    rows = []
    for record in records:
        name, boxes = printable(record["image"]), record.get("boxes")
        rows += [[name, *map(str, box.values())] for box in boxes or ()]
        if not boxes:
            rows.append([name, record.get("error", "nothing"), "", "", "", "", ""])
    return ["image", "class", "score", "x0", "y0", "x1", "y1"], rows
