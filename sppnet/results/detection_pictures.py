"""Pictures of detections: which images show what a detector can and cannot do, with boxes drawn, saved as JPEG."""

import base64
import binascii
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppnet.data.images import decode_image
from sppnet.data.objects import AnnotatedImages, Objects, ObjectsByImage
from sppnet.data.sources import read_image
from sppnet.results.drawn_boxes import DrawnBoxes, draw_boxes
from sppnet.results.precisions import Matches, class_precisions
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line, printable

# What pictures show, in the order of a page.
KINDS = {
    "sample": "Images spread evenly over the test set, with all detections",
    "best": "Best images by class: all objects found and nothing else",
    "worst": "Worst images by class: the most wrong detections and missed objects",
    "missed": "Missed objects, the largest first",
}

_SAMPLES, _OF_CLASS, _MISSED = 8, 2, 12  # pictures of the test set, of a class by kind, of missed objects
_MOST_CLASSES = 20  # of more, those of the highest and of the lowest average precision have pictures
# Colours that readers of any colour vision tell apart.
_FOUND_COLOR, _WRONG_COLOR, _MISSED_COLOR = "#009e73", "#d55e00", "#0072b2"
COLORS_TEXT = "Green: found; orange: wrong; blue: an object that was missed. Small boxes have no text."


class Picture(NamedTuple):
    """An image with detections and missed objects drawn on it."""

    kind: str  # a key of KINDS
    class_name: str  # of the detections that are drawn; "" for all
    caption: str
    jpeg: bytes


def pictures_file(detections: Path) -> Path:
    """Returns where the pictures of a file of detections are."""
    return detections.parent / "pictures" / detections.name


def write_pictures(path: Path, matches: Matches, images: AnnotatedImages) -> None:
    """Writes pictures of the images that `chosen_images` chooses, atomically, as JSON lines.

    Args:
        path: the file.
        matches: of the detections in the images.
        images: the images, which are read.
    """
    view = ShownDetections.of(matches)
    with atomic_file(path) as file:
        for chosen in chosen_images(view, images):
            picture = _picture(chosen, view, images)
            content = {**picture._asdict(), "jpeg": base64.b64encode(picture.jpeg).decode()}
            file.write(f"{json.dumps(content)}\n".encode())


def read_pictures(path: Path) -> list[Picture]:
    """Reads a file that `write_pictures` wrote. Raises ValueError, naming file and line, for anything else."""
    pictures = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                content = json.loads(line)
                pictures.append(Picture(**{**content, "jpeg": base64.b64decode(content["jpeg"], validate=True)}))
                _check(pictures[-1])
            except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
                raise ValueError(printable(f"{path}:{number}: not a file of pictures ({first_line(error)})")) from error
    return pictures


def _check(picture: Picture) -> None:
    """Raises ValueError unless the values are those of a picture."""
    if picture.kind not in KINDS or not all(isinstance(text, str) for text in (picture.class_name, picture.caption)):
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, class_name and caption text")
    if not picture.jpeg.startswith(b"\xff\xd8\xff"):
        raise ValueError("jpeg must be a JPEG image")


# Which detections are shown.


class ShownDetections(NamedTuple):
    """Detections from a score on at which the harmonic mean F1 of precision and recall is highest, per class.

    matches: of all detections.
    shown: bool (K,), those that are drawn; ignored ones are not.
    found, wrong, missed: int64 (n, classes), shown detections and missed objects of each image.
    """

    matches: Matches
    shown: np.ndarray
    found: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @classmethod
    def of(cls, matches: Matches) -> "ShownDetections":
        detections = matches.detections
        least = _least_scores(matches)
        shown = (detections.scores >= least[detections.labels]) & ~matches.ignored

        found, wrong = (np.zeros_like(matches.counts) for _ in range(2))
        for counts, chosen in ((found, shown & matches.positive), (wrong, shown & ~matches.positive)):
            np.add.at(counts, (detections.images[chosen], detections.labels[chosen]), 1)
        return cls(matches, shown, found, wrong, matches.counts - found)


def _least_scores(matches: Matches) -> np.ndarray:
    """Returns for every class the score from which on F1 is highest, float (classes,); inf without detections.

    At most twice as many detections of a class are shown as it has objects: of a class that is hardly ever found, F1
    can be highest where all are shown.
    """
    detections = matches.detections
    least = np.full(len(detections.classes), np.inf)
    for label, count in enumerate(matches.counts.sum(axis=0)):
        of_class = np.flatnonzero((detections.labels == label) & ~matches.ignored)
        ranked = of_class[np.argsort(-detections.scores[of_class], kind="stable")]
        found, scores = np.cumsum(matches.positive[ranked]), detections.scores[ranked]
        score = 2 * found / (np.arange(1, len(ranked) + 1) + count)
        score[:-1][scores[1:] == scores[:-1]] = 0  # equal scores enter together
        if len(score := score[: 2 * count]):
            least[label] = scores[score.argmax()]
    return least


# Which images are shown.


class ChosenImage(NamedTuple):
    """An image to show: with the detections and missed objects of one class, or of all."""

    kind: str  # a key of KINDS
    image: int
    label: int | None  # of the class; None for all


def chosen_images(view: ShownDetections, images: ObjectsByImage) -> list[ChosenImage]:
    """Chooses images for every one of KINDS."""
    n = len(view.found)
    samples = np.linspace(0, n - 1, min(n, _SAMPLES)).round().astype(int)
    chosen = [ChosenImage("sample", int(image), None) for image in samples]
    labels = _shown_labels(view)
    for kind, choose in (("best", _best_images), ("worst", _worst_images)):
        chosen += [
            ChosenImage(kind, int(image), label) for label in labels for image in choose(view, label)[:_OF_CLASS]
        ]
    return chosen + [ChosenImage("missed", *one) for one in _with_missed_objects(view, images)[:_MISSED]]


def _shown_labels(view: ShownDetections) -> list[int]:
    """Returns the labels of classes that have objects: all in their order, or of many those at both ends."""
    precisions = class_precisions(view.matches, points=None)
    labels = np.flatnonzero(~np.isnan(precisions))
    if len(labels) > _MOST_CLASSES:
        by_precision = labels[np.argsort(precisions[labels], kind="stable")]
        labels = np.sort(np.concatenate([by_precision[: _MOST_CLASSES // 2], by_precision[-_MOST_CLASSES // 2 :]]))
    return [int(label) for label in labels]


def _best_images(view: ShownDetections, label: int) -> np.ndarray:
    """Returns images of a class without errors, those first whose lowest score is highest."""
    right = np.flatnonzero((view.found[:, label] > 0) & (view.wrong[:, label] + view.missed[:, label] == 0))
    lowest = np.full(len(view.found), np.inf)
    _of_class(view, label, np.minimum, lowest)
    return right[np.argsort(-lowest[right], kind="stable")]


def _worst_images(view: ShownDetections, label: int) -> np.ndarray:
    """Returns images with errors in a class, the most errors first, of equally many the highest wrong score first."""
    errors = view.wrong[:, label] + view.missed[:, label]
    highest = np.full(len(errors), -np.inf)
    _of_class(view, label, np.maximum, highest, wrong=True)
    order = np.lexsort((-highest, -errors))
    return order[errors[order] > 0]


def _of_class(view: ShownDetections, label: int, extreme: np.ufunc, values: np.ndarray, wrong: bool = False) -> None:
    """Sets `values` (n,) to the extreme score of shown detections of a class, right or wrong ones, in each image."""
    detections = view.matches.detections
    chosen = view.shown & (detections.labels == label) & (view.matches.positive != wrong)
    extreme.at(values, detections.images[chosen], detections.scores[chosen])


def _with_missed_objects(view: ShownDetections, images: ObjectsByImage) -> list[tuple[int, int]]:
    """Returns images and labels of the largest missed object in each, the largest of all first."""
    largest = []
    for image in map(int, np.flatnonzero(view.missed.any(axis=1))):
        objects = _missed_objects(view, images, image)
        areas = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(axis=1)
        largest.append((-float(areas.max()), image, int(objects.labels[areas.argmax()])))
    return [(image, label) for _, image, label in sorted(largest)]


def _missed_objects(view: ShownDetections, images: ObjectsByImage, image: int) -> Objects:
    """Returns the objects of an image that no shown detection found and that are not difficult."""
    objects = images.objects(image)
    matches = view.matches
    found = matches.objects[view.shown & matches.positive & (matches.detections.images == image)]
    missed = ~objects.difficult
    missed[found] = False
    return objects.of(missed)


# Drawing.


def _picture(chosen: ChosenImage, view: ShownDetections, images: AnnotatedImages) -> Picture:
    """Draws the detections and missed objects of a class, or of all, on an image."""
    labels = slice(None) if chosen.label is None else slice(chosen.label, chosen.label + 1)
    found, wrong, missed = (int(counts[chosen.image, labels].sum()) for counts in (view.found, view.wrong, view.missed))
    encoded, name = read_image(images, chosen.image)
    jpeg = draw_boxes(decode_image(encoded, name), _boxes(chosen, view, images))
    class_name = "" if chosen.label is None else images.classes[chosen.label]
    return Picture(chosen.kind, class_name, printable(f"{name}: {found} found, {wrong} wrong, {missed} missed"), jpeg)


def _boxes(chosen: ChosenImage, view: ShownDetections, images: AnnotatedImages) -> DrawnBoxes:
    """Returns missed objects and shown detections, those of the highest score on top."""
    detections, objects = view.matches.detections, _missed_objects(view, images, chosen.image)
    shown = np.flatnonzero(view.shown & (detections.images == chosen.image))
    shown = shown[np.argsort(detections.scores[shown], kind="stable")]
    if chosen.label is not None:
        objects, shown = objects.of(objects.labels == chosen.label), shown[detections.labels[shown] == chosen.label]

    # Where all are of one class, which the caption names, shorter texts hide less of small objects.
    names = images.classes if chosen.label is None else ("",) * len(images.classes)
    texts = [names[label] for label in objects.labels]
    texts += [f"{names[detections.labels[i]]} {detections.scores[i]:.2f}".strip() for i in shown]
    colors = [_MISSED_COLOR] * len(objects)
    colors += [_FOUND_COLOR if view.matches.positive[i] else _WRONG_COLOR for i in shown]
    return DrawnBoxes(np.concatenate([objects.boxes, detections.boxes[shown]]), texts, colors)
