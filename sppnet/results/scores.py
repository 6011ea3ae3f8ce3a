"""Scores files: the scores of a finished evaluation in one file, and those of an unfinished one in parts."""

import json
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sppnet.results.records import Result
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line

# The version of the scoring code, part of the identity of saved scores. Raise it when the scores of an unchanged
# protocol change: other paddings, other cells of a window, another resizing. Scores saved under another version are
# computed again.
SCORING_RULES = 2


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one network by one protocol: all that errors, combinations and comparisons need.

    scores: float32 (n, classes), columns in the order of the network's classes: mean softmax scores of a classifier, or
        in files below RUN/transfer the decision values of one linear SVM per class, positive for the class.
    labels: int64 (n,), one class per image; or int8 (n, classes) where images have several, as in VOC: 1 present, 0
        ignored, -1 absent. Only files below RUN/transfer have these: see `check_single_label`.
    names: str (n,), of the images.
    about: plain values: protocol, images (a hash of their names, labels and contents), data, network, where and when
        the scores were made.
    """

    scores: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    about: dict[str, Any]

    @property
    def several_labels(self) -> bool:
        """Whether images have several labels, rather than one class each."""
        return self.labels.ndim == 2


def is_of_validation_images(about: dict[str, Any], config: dict[str, Any], result: Result | None) -> bool:
    """Whether scores are of exactly the images that the run validated on, wherever these are now.

    Args:
        about: `Scores.about`.
        config: of the run.
        result: of the run. If it is None or does not name the validation images, the scores must be of the data section
            and the part that the run was trained on.
    """
    if result is not None and result.validation_images is not None:
        return bool(about.get("images") == result.validation_images)
    return about.get("data") == config["data"] and about.get("part") == "val" and not about.get("exclude")


def write_scores(path: Path, scores: Scores) -> None:
    """Writes one .npz file atomically."""
    about = np.array(json.dumps(scores.about, sort_keys=True))
    with atomic_file(path) as file:
        np.savez(file, scores=scores.scores, labels=scores.labels, names=scores.names, about=about)


def read_scores(path: Path, command: str = "evaluate") -> Scores:
    """Reads a file that `write_scores` wrote. Never runs code from the file.

    Args:
        command: which makes the file again, for the error.

    Raises ValueError, naming the file, if it is damaged or holds anything else.
    """
    arrays = _read_arrays(path, ("scores", "labels", "names", "about"), command)
    try:
        about = _about_of(arrays)
        scores, labels, names = (arrays[name] for name in ("scores", "labels", "names"))
        n, _ = scores.shape

        kinds = (scores.dtype.kind, labels.dtype.kind, names.dtype.kind)
        if kinds != ("f", "i", "U") or not (len(labels) == len(names) == n > 0):
            raise ValueError(f"{n} scores, {len(labels)} labels and {len(names)} names of the kinds {kinds}")
        if not np.isfinite(scores).all() or not _are_labels(labels, scores):
            raise ValueError("scores that are not finite, or labels out of range")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(_not_scores(path, str(error), command)) from error
    return Scores(scores, labels, names, about)


def read_about(path: Path, command: str = "evaluate") -> dict[str, Any]:
    """Reads `Scores.about` alone, without the scores. Arguments and errors as of `read_scores`."""
    arrays = _read_arrays(path, ("about",), command)
    try:
        return _about_of(arrays)
    except (ValueError, RecursionError) as error:
        raise ValueError(_not_scores(path, str(error), command)) from error


def check_single_label(scores: Scores, source: str) -> None:
    """Raises ValueError unless images have one label each, so that errors are defined.

    Args:
        source: of the scores, for the error.
    """
    if scores.several_labels:
        raise ValueError(f"{source}: a label for every class, as of `transfer` on VOC; must be one label per image")


def _about_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    about = json.loads(str(arrays["about"]))
    if not isinstance(about, dict):
        raise ValueError("about must be keys with values")
    return about


def _are_labels(labels: np.ndarray, scores: np.ndarray) -> bool:
    """Whether labels are those of `Scores`: a class per image, or -1, 0 or 1 for every image and class."""
    if labels.ndim == 2:
        return (
            labels.dtype == np.int8 and labels.shape == scores.shape and bool(labels.min() >= -1 and labels.max() <= 1)
        )
    return labels.ndim == 1 and bool(labels.min() >= 0 and labels.max() < scores.shape[1])


class ScorePart(NamedTuple):
    """Scores of some images of an unfinished evaluation."""

    names: np.ndarray  # str (n,)
    digests: np.ndarray  # uint8 (n, 16), of the contents of the images
    scores: np.ndarray  # float32 (n, classes)


def add_score_part(folder: Path, identity: dict[str, Any], part: ScorePart) -> None:
    """Saves the scores of some images in a new file in `folder`.

    Args:
        identity: everything but the content of an image that decides its scores.
    """
    about = np.array(json.dumps(identity, sort_keys=True))
    with atomic_file(folder / f"{uuid.uuid4().hex}.npz") as file:
        np.savez(file, **part._asdict(), about=about)


def read_score_parts(scores: Path, identity: dict[str, Any]) -> Iterator[ScorePart]:
    """Yields the parts of this identity in the folder `scores`, whichever selection of images they were saved for.

    Skips damaged parts and parts of another identity.
    """
    about = json.dumps(identity, sort_keys=True)
    for path in sorted(scores.glob("*.parts/*.npz")):
        try:
            arrays = _read_arrays(path, (*ScorePart._fields, "about"))
        except (ValueError, FileNotFoundError):  # an evaluation that finishes meanwhile deletes its parts
            continue
        part = ScorePart(*(arrays[name] for name in ScorePart._fields))
        if str(arrays["about"]) == about and _is_valid(part):
            yield part


def delete_score_parts(folder: Path) -> None:
    """Deletes a folder of parts; what cannot be deleted is left."""
    shutil.rmtree(folder, ignore_errors=True)


def _is_valid(part: ScorePart) -> bool:
    kinds = tuple(array.dtype.kind for array in part)
    n = len(np.atleast_1d(part.names))
    shapes_fit = part.names.shape == (n,) and part.digests.shape == (n, 16) and part.scores.shape[:-1] == (n,)
    return kinds == ("U", "u", "f") and shapes_fit and bool(np.isfinite(part.scores).all())


def _read_arrays(path: Path, names: tuple[str, ...], command: str = "evaluate") -> dict[str, np.ndarray]:
    """Reads arrays from an .npz file by name. Raises ValueError, naming the file, if it is damaged."""
    try:
        with path.open("rb") as stream:
            _check_archive(stream, names)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in names}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy fail on damaged files in a dozen ways
        raise ValueError(_not_scores(path, first_line(error), command)) from error


def _not_scores(path: Path, reason: str, command: str) -> str:
    return f"{path}: not a scores file ({reason}); delete it and run {shown_command(command)} again"


# Numpy writes version 3 for field names that are not Latin, which no array here has.
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _check_archive(stream: BinaryIO, names: tuple[str, ...]) -> None:
    """Raises ValueError unless the arrays are stored uncompressed and are as large as their headers say.

    numpy.savez writes them so. The memory they take is then bounded by the size of the file.
    """
    left = stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as archive:
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            left -= member.file_size
            if member.compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError(f"{name} unfolds to {member.file_size:,} bytes, more than the file holds")

            with archive.open(member) as array:
                read_header = _NPY_HEADERS[np.lib.format.read_magic(array)]
                shape, _, dtype = read_header(array)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{name} says {shape} of {dtype}, more than the file holds")
