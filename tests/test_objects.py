"""Objects in images: kept in few arrays, selected by image and class, with a fingerprint of all that is annotated."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from conftest import names
from sppnet.data.objects import DetectionSplits, Objects, annotated_files, exclude_images, select_objects


def objects_of(*objects):
    """The objects (box, label, difficult) of an image."""
    return Objects(
        np.array([box for box, _, _ in objects], np.float64).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int64),
        np.array([difficult for _, _, difficult in objects], bool),
    )


def rows(objects):
    return list(zip(map(tuple, objects.boxes), objects.labels.tolist(), objects.difficult.tolist(), strict=True))


ONE = ((0.0, 1.0, 7.0, 11.0), 0, False)
TWO = ((2.5, 3.0, 10.0, 13.0), 1, True)
THREE = ((1.0, 1.0, 2.0, 2.0), 2, False)
IMAGES = [objects_of(ONE, TWO), objects_of(), objects_of(THREE), objects_of(TWO)]


def images_of(objects=IMAGES, classes=("cat", "dog", "fox"), prefix=""):
    return annotated_files("root", [f"{prefix}{i}.jpg" for i in range(len(objects))], objects, classes)


def test_every_image_has_its_own_objects():
    images = images_of()
    assert [rows(images.objects(i)) for i in range(4)] == [[ONE, TWO], [], [THREE], [TWO]]
    assert [len(images.objects(i)) for i in range(4)] == [2, 0, 1, 1]
    assert (images.objects(1).boxes.shape, images.objects(1).boxes.dtype) == ((0, 4), np.float64)


def test_images_survive_pickling_and_hold_no_object_per_image():
    images = images_of()
    assert not any(isinstance(value, list | dict) for value in vars(images).values())
    assert pickle.loads(pickle.dumps(images)).fingerprint() == images.fingerprint()


def test_a_class_that_is_not_chosen_loses_its_objects_and_no_image():
    chosen = select_objects(images_of(), classes=["fox", "cat"])
    assert chosen.classes == ("fox", "cat")
    assert names(chosen) == names(images_of())
    assert [rows(chosen.objects(i)) for i in range(4)] == [[(ONE[0], 1, False)], [], [(THREE[0], 0, False)], []]


def test_images_are_left_out_by_name_and_then_limited():
    assert names(select_objects(images_of(), exclude=["1.jpg"])) == ["0.jpg", "2.jpg", "3.jpg"]
    chosen = select_objects(images_of(), exclude=["0.jpg"], limit=2)
    assert names(chosen) == ["1.jpg", "2.jpg"]
    assert rows(chosen.objects(1)) == [THREE]
    assert len(select_objects(images_of(), limit=99)) == 4


def test_the_fingerprint_changes_with_names_boxes_labels_difficulty_and_classes():
    images = images_of()
    prints = [
        images.fingerprint(),
        images_of(prefix="x").fingerprint(),
        images_of(classes=("cat", "dog", "cow")).fingerprint(),
        images_of([objects_of(ONE), objects_of(TWO), objects_of(THREE), objects_of(TWO)]).fingerprint(),
        images_of([*IMAGES[:3], objects_of(((2.5, 3.0, 10.0, 14.0), 1, True))]).fingerprint(),
        images_of([*IMAGES[:3], objects_of((TWO[0], 0, True))]).fingerprint(),
        images_of([*IMAGES[:3], objects_of((TWO[0], 1, False))]).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert replace(images, root="elsewhere").fingerprint() == prints[0]


def test_a_selection_of_everything_has_the_fingerprint_of_its_source():
    images = images_of()
    assert select_objects(images).fingerprint() == images.fingerprint()
    assert select_objects(images, limit=3).fingerprint() != images.fingerprint()
    assert select_objects(images, classes=["cat", "fox", "dog"]).fingerprint() != images.fingerprint()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exclude": ["4.jpg"]}, r"^exclude=4\.jpg: no image has this name; such a name is 0\.jpg$"),
        ({"exclude": [f"{i}.jpg" for i in range(4)]}, r"^exclude: leaves none of the 4 images$"),
        ({"classes": ["dgo"]}, "has no class dgo; did you mean dog"),
        ({"classes": []}, r"^classes=\[\]: must name at least one class"),
        ({"classes": ["cat", "cat"]}, "cat is there twice"),
        ({"limit": 0}, "^limit=0: must be at least 1"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        select_objects(images_of(), **options)


def test_an_image_may_be_excluded_from_either_split():
    splits = DetectionSplits(images_of(), images_of(prefix="test"))
    train, test = exclude_images(splits, ["test2.jpg", "0.jpg"])
    assert (names(train), names(test)) == (["1.jpg", "2.jpg", "3.jpg"], ["test0.jpg", "test1.jpg", "test3.jpg"])
    with pytest.raises(ValueError, match=r"^exclude=x: no image has this name"):
        exclude_images(splits, ["x"])
