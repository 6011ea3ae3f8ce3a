"""The objects of a test set, saved beside its detections so that tables need no data set.

The first line of a file is {"classes": ..., "images": n}, every other one an image:
{"name": ..., "labels": [...], "boxes": [[x0, y0, x1, y1], ...], "difficult": [...]}.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.data.objects import Objects, ObjectsByImage
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line, printable

OBJECTS_FILE = "objects.jsonl"  # its name in the folder of detections


@dataclass(frozen=True, eq=False)
class SavedObjects:
    """The objects of images, without the images."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    of_image: tuple[Objects, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def objects(self, index: int) -> Objects:
        return self.of_image[index]


def write_objects(path: Path, images: ObjectsByImage) -> None:
    """Writes the names, classes and objects of images atomically, as JSON lines from which they come back exactly."""
    with atomic_file(path) as file:
        file.write(_line({"classes": list(images.classes), "images": len(images)}))
        for index in range(len(images)):
            objects = images.objects(index)
            arrays = {name: getattr(objects, name).tolist() for name in ("labels", "boxes", "difficult")}
            file.write(_line({"name": images.name(index), **arrays}))


def _line(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, separators=(',', ':'))}\n".encode()


def read_objects(path: Path) -> SavedObjects:
    """Reads a file that `write_objects` wrote. Raises ValueError, naming file and line, for anything else."""
    names: list[str] = []
    of_image: list[Objects] = []
    number = 1
    try:
        with path.open("rb") as file:
            classes, count = _read_header(next(file, b""))
            for line in file:
                number += 1
                name, objects = _read_image(line, len(classes))
                names.append(name)
                of_image.append(objects)
        if len(names) != count:
            raise ValueError(f"objects of {len(names):,} images, must be of {count}")
        return SavedObjects(tuple(names), classes, tuple(of_image))
    except KeyError as error:
        raise ValueError(f"{path}:{number}: not a file of objects ({error} is missing)") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(printable(f"{path}:{number}: not a file of objects ({first_line(error)})")) from error


def _read_header(line: bytes) -> tuple[tuple[str, ...], Any]:
    first = json.loads(line)
    classes = first["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes must be a list of text")
    return tuple(classes), first["images"]


def _read_image(line: bytes, classes: int) -> tuple[str, Objects]:
    content = json.loads(line)
    labels, difficult = np.array(content["labels"]), np.array(content["difficult"])
    boxes = np.array(content["boxes"], np.float64)
    k = len(labels)
    if not isinstance(content["name"], str) or boxes.shape != ((k, 4) if k else (0,)) or difficult.shape != (k,):
        raise ValueError("must have a name, and a label, a box of four numbers and a flag for every object")
    if k and (labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= classes or difficult.dtype != bool):
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, and difficult true or false")
    if not (np.isfinite(boxes).all() and (boxes.size == 0 or (boxes[:, :2] < boxes[:, 2:]).all())):
        raise ValueError("boxes must be finite, not empty and not inside out")
    return content["name"], Objects(boxes.reshape(k, 4), labels.astype(np.int64), difficult.astype(bool))
