"""Made-up detections and objects, for the tests of their tables."""

from typing import NamedTuple

import numpy as np

from made_transfers import ZF5
from sppnet.data.objects import Objects, annotated_files, objects_fingerprint
from sppnet.results.detections import ImageDetections, gather_detections, write_detections
from sppnet.results.object_files import OBJECTS_FILE, SavedObjects, write_objects
from sppnet.results.paper_detection import VOC_CLASSES

NETWORK = ZF5 | {"variant": "single"}
IMAGENET = {"trained_on": "imagenet", "on_imagenet": True, "setting": '{"width": 1.0}'}
LENGTHS = {"pool5": 12800, "fc6": 4096, "fc7": 4096}
VOC = {"data": {"source": "voc", "root": "/somewhere/VOC2007"}, "data_text": "voc VOC2007", "n_train": 5011}


class MadeImage(NamedTuple):
    """Objects of an image; in the tests every object is 40 pixels wide and high."""

    labels: tuple[int, ...]
    difficult: tuple[bool, ...]


def made_objects(n=12, classes=("ant", "bee", "<cat>"), seed=0, prefix="JPEGImages/"):
    """Makes the objects of `n` images: one to three each, 100 pixels apart, every fifth of them difficult."""
    random = np.random.default_rng(seed)
    of_image = []
    for i in range(n):
        k = int(random.integers(1, 4))
        corners = 100.0 * np.arange(k)[:, None] + random.integers(0, 20, (k, 2))
        difficult = (np.arange(k) + i) % 5 == 4
        labels = (i + np.arange(k)) % len(classes)
        of_image.append(Objects(np.concatenate([corners, corners + 40], axis=1), labels.astype(np.int64), difficult))
    return SavedObjects(tuple(f"{prefix}{i:06d}.jpg" for i in range(n)), tuple(classes), tuple(of_image))


def voc_objects(n=4952):
    """Makes the objects of as many images as VOC 2007 has to test on, one in each."""
    box = np.array([[10.0, 10.0, 50.0, 50.0]])
    flags = np.zeros(1, bool)
    of_image = tuple(Objects(box, np.array([i % 20]), flags) for i in range(n))
    return SavedObjects(tuple(f"{i:06d}.jpg" for i in range(n)), VOC_CLASSES, of_image)


def made_about(objects, row="ftfc7", network=None, **changes):
    """Makes `Detections.about`; `network`: changes of NETWORK."""
    return {
        "row": row,
        "network": NETWORK | (network or {}),
        "checkpoint": "abc",
        "seed": 0,
        "setting": "{}",
        "scales": [688],
        "lengths": LENGTHS,
        "proposals": {"proposer": "dense", "windows": 2000, "most": 2000},
        "suppression_overlap": 0.3,
        "most": 100,
        "data": {"source": "scenes"},
        "data_text": "scenes",
        "n_train": 60,
        "objects": objects_fingerprint(objects),
    } | changes


def made_detections(objects, share=0.7, wrong=1, seed=0):
    """Makes detections that find about `share` of the objects, with `wrong` others in each image.

    Scores of finds are higher on average than those of the others.
    """
    random = np.random.default_rng(seed)
    for i in range(len(objects)):
        truth = objects.objects(i)
        found = np.flatnonzero(random.random(len(truth)) < share)
        boxes = np.concatenate(
            [truth.boxes[found] + 2, random.integers(300, 400, (wrong, 2)).repeat(2, 0).reshape(-1, 4)]
        )
        boxes[len(found) :, 2:] += 40
        labels = np.concatenate([truth.labels[found], random.integers(0, len(objects.classes), wrong)])
        scores = random.normal(size=len(labels)) + np.repeat([1.0, -0.5], [len(found), wrong])
        yield ImageDetections(objects.name(i), labels, scores.astype(np.float32), boxes.astype(np.float32))


def make_test(run, objects, row="ftfc7", network=None, found=None, share=0.7, seed=0, **changes):
    """Saves detections and objects where `detect` does, and returns the path of the detections.

    Args:
        run: the run directory.
        objects: of the test images.
        found: the detections; by default `made_detections` of `share`, with random numbers of the row and `seed`.
        seed: of the detector.
        changes: of `made_about`.
    """
    path = run / "detections" / f"{row}.jsonl"
    about = made_about(objects, row, network, seed=seed, **changes)
    found = made_detections(objects, share, seed=100 * len(row) + seed) if found is None else found
    write_detections(path, found, classes=objects.classes, images=len(objects), about=about)
    write_objects(path.with_name(OBJECTS_FILE), objects)
    return path


def objects_of(*objects):
    """The objects (box, label) or (box, label, difficult) of an image."""
    return Objects(
        np.array([one[0] for one in objects], np.float64).reshape(-1, 4),
        np.array([one[1] for one in objects], np.int64),
        np.array([len(one) > 2 and one[2] for one in objects], bool),
    )


def truth(*images, classes=("cat", "dog")):
    return annotated_files("root", [f"JPEGImages/{i}.jpg" for i in range(len(images))], list(images), classes)


def found(images, *detections):
    """Detections (image, label, score, box) in images."""
    per_image = []
    for i in range(len(images)):
        own = [one for one in detections if one[0] == i]
        labels = np.array([one[1] for one in own], np.int64)
        scores = np.array([one[2] for one in own], np.float32)
        per_image.append(
            ImageDetections(
                images.name(i), labels, scores, np.array([one[3] for one in own], np.float32).reshape(-1, 4)
            )
        )
    return gather_detections(per_image, images.classes, {"network": "zf5"})
