"""The classes that a classifier predicts for photos: as records for files, as lines for the terminal, as pictures."""

from collections.abc import Sequence

import numpy as np

from sppnet.results.record_files import Record, Table
from sppnet.runtime.names import printable

UNSURE = "unsure"  # the prediction where the highest score is too low

_WIDEST = 60  # letters of a name in a column


def prediction_record(
    name: str, size: tuple[int, int], scores: np.ndarray, classes: Sequence[str], *, top: int, min_score: float | None
) -> Record:
    """Returns the record of a photo: {"image", "width", "height", "prediction", "scores": [{"class", "score"}, ...]}.

    Args:
        name: of the photo.
        size: (height, width) in pixels.
        scores: float32 (C,).
        classes: C names.
        top: how many classes are listed, highest score first; of equal scores the first class.
        min_score: score below which the prediction is "unsure"; None: never.
    """
    best = np.argsort(-scores, kind="stable")[:top]
    record = {
        "image": name,
        "width": size[1],
        "height": size[0],
        "prediction": classes[best[0]],
        # The shortest decimal number that is this float32.
        "scores": [{"class": classes[index], "score": float(str(scores[index]))} for index in best],
    }
    return record | {"prediction": UNSURE} if is_unsure(record, min_score) else record


def is_unsure(record: Record, min_score: float | None) -> bool:
    """Whether the highest score of a record is too low; False for a photo that could not be used."""
    return min_score is not None and "scores" in record and record["scores"][0]["score"] < min_score


def prediction_table(top: int) -> Table:
    """Returns the layout of a row per photo: its prediction, then the `top` classes with their scores."""
    columns: dict[str, type] = {"image": str, "width": int, "height": int, "prediction": str}
    for place in range(1, top + 1):
        columns |= {f"class_{place}": str, f"score_{place}": float}

    def rows(record: Record) -> list[Record]:
        row = {key: value for key, value in record.items() if key != "scores"}
        for place, one in enumerate(record.get("scores", ()), start=1):
            row |= {f"class_{place}": one["class"], f"score_{place}": one["score"]}
        return [row]

    return Table(columns | {"error": str}, rows)


class PredictionLines:
    """Formats records as lines of a table on a terminal, which can be printed one by one.

    Args:
        names: of all photos.
        classes: of the network.
    """

    def __init__(self, names: Sequence[str], classes: Sequence[str]) -> None:
        self._name = min(_WIDEST, max(len(printable(name)) for name in (*names, "image")))
        self._class = min(_WIDEST, max(len(printable(name)) for name in (*classes, UNSURE, "prediction")))

    def header(self) -> str:
        """Returns the line above all others."""
        return f"{'image':<{self._name}}  {'prediction':<{self._class}}  classes by their scores".rstrip()

    def line(self, record: Record) -> str:
        """Returns the line of a record."""
        name = f"{printable(record['image']):<{self._name}}"
        if "error" in record:
            return f"{name}  {record['error']}"
        scores = ", ".join(f"{printable(one['class'])} {one['score']:.4f}" for one in record["scores"])
        return f"{name}  {printable(record['prediction']):<{self._class}}  {scores}"
