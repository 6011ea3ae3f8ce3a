"""Pictures of detections: which images are chosen, what is drawn on them, and their files."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from made_detections import made_objects, make_test
from sppnet.data.objects import Objects, annotated_files
from sppnet.results.detection_page import detection_page
from sppnet.results.detection_pictures import (
    KINDS,
    ShownDetections,
    chosen_images,
    pictures_file,
    read_pictures,
    write_pictures,
)
from sppnet.results.detections import ImageDetections, gather_detections
from sppnet.results.detector_runs import read_detector_runs
from sppnet.results.precisions import match_detections

SIDE = 60  # of the objects here
FOUND, WRONG, MISSED = (0, 158, 115), (213, 94, 0), (0, 114, 178)


def images_with(tmp_path, *of_image, size=(200, 150), classes=("cat", "dog")):
    """Writes grey images with the objects (x, y, label) or (x, y, label, side) in each, half of them without."""
    paths, objects = [], []
    for i, entries in enumerate(of_image):
        paths.append(f"{i}.png")
        Image.new("RGB", size, (128, 128, 128)).save(tmp_path / paths[-1])
        boxes = [(x, y, x + (more or [SIDE])[0], y + (more or [SIDE])[0]) for x, y, _, *more in entries]
        labels = [entry[2] for entry in entries]
        objects.append(
            Objects(np.array(boxes, float).reshape(-1, 4), np.array(labels, np.int64), np.zeros(len(labels), bool))
        )
    return annotated_files(str(tmp_path), paths, objects, classes)


def matched(images, *found):
    """Matches detections (x, y, label, score) in each image."""
    every = []
    for i, entries in enumerate(found):
        boxes = np.array([(x, y, x + SIDE, y + SIDE) for x, y, _, _ in entries], np.float32).reshape(-1, 4)
        labels, scores = (np.array([entry[k] for entry in entries]) for k in (2, 3))
        every.append(ImageDetections(images.name(i), labels.astype(np.int64), scores.astype(np.float32), boxes))
    return match_detections(gather_detections(every, images.classes), images)


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.jpeg)))


def close(color, other):
    """Whether a pixel, whose colour JPEG blurs, is nearer to a colour than to the grey of the images."""
    return np.square(np.asarray(color, int) - other).sum() < np.square(np.asarray(color, int) - 128).sum()


# Which detections are shown.


def test_detections_are_shown_from_the_score_of_the_highest_f1(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)], [(0, 0, 0)], [(0, 0, 0)])
    # By score: right, right, wrong, right, wrong: F1 is 2/4, 4/5, 4/6, 6/7, 6/8.
    matches = matched(
        images, [(0, 0, 0, 0.9), (130, 80, 0, 0.7)], [(0, 0, 0, 0.8), (130, 80, 0, 0.5)], [(0, 0, 0, 0.6)]
    )
    view = ShownDetections.of(matches)
    assert view.shown.tolist() == [True, True, True, False, True]
    assert view.found[:, 0].tolist() == [1, 1, 1]
    assert view.wrong[:, 0].tolist() == [1, 0, 0]
    assert not view.missed.any()


def test_equal_scores_are_shown_together_or_not_at_all(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)], [])
    view = ShownDetections.of(matched(images, [(0, 0, 0, 0.5)], [(0, 0, 0, 0.5), (130, 80, 0, 0.4)]))
    assert view.shown.tolist() == [True, True, False]


def test_what_equal_scores_find_counts_with_all_that_they_do_not(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)], [(0, 0, 0)])
    wrong = [(130, 80 - i, 0, 0.5) for i in range(3)]
    view = ShownDetections.of(matched(images, [(0, 0, 0, 0.9)], [(0, 0, 0, 0.5), *wrong]))
    assert view.shown.tolist() == [True, False, False, False, False]  # F1 is 2/3, and 4/7 with those of 0.5


def test_of_a_class_that_is_never_found_only_the_highest_score_is_shown(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)])
    view = ShownDetections.of(matched(images, [(130, 80, 0, 0.5), (120, 80, 0, 0.4)]))
    assert view.shown.tolist() == [True, False]
    assert view.missed.tolist() == [[1, 0]]


def test_of_a_class_without_objects_nothing_is_shown(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)])
    assert not ShownDetections.of(matched(images, [(0, 0, 1, 0.5)])).shown.any()


def test_at_most_twice_as_many_detections_are_shown_as_there_are_objects(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)], [(0, 0, 0)])
    wrong = [(130, 80 - i, 0, 0.9 - i / 100) for i in range(3)]
    view = ShownDetections.of(matched(images, [*wrong, (0, 0, 0, 0.7)], [(0, 0, 0, 0.6)]))
    assert view.shown.tolist() == [True, True, True, True, False]  # F1 is 2/6, and would be 4/7 with the last find


# Which images are chosen.


@pytest.fixture
def three_kinds(tmp_path):
    """Image 0 is right, of 1 an object is missed, 2 has a wrong detection, 3 and 4 are right with other scores."""
    images = images_with(tmp_path, [(0, 0, 0)], [(0, 0, 0), (100, 20, 0)], [(0, 0, 0)], [(0, 0, 0)], [(0, 0, 0)], [])
    found = (
        [(0, 0, 0, 0.5)],
        [(0, 0, 0, 0.8)],
        [(0, 0, 0, 0.9), (130, 80, 0, 0.7)],
        [(0, 0, 0, 0.9)],
        [(0, 0, 0, 0.6)],
        [],
    )
    return images, matched(images, *found)


def images_of(kind, view, images):
    return [(one.image, one.label) for one in chosen_images(view, images) if one.kind == kind]


def test_the_best_images_have_no_errors_and_the_worst_have_most(three_kinds):
    images, matches = three_kinds
    view = ShownDetections.of(matches)
    assert images_of("best", view, images) == [(3, 0), (4, 0)]
    assert images_of("worst", view, images) == [(2, 0), (1, 0)]
    assert images_of("missed", view, images) == [(1, 0)]
    assert images_of("sample", view, images) == [(i, None) for i in range(6)]


def test_the_largest_missed_objects_come_first(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0, 50)], [(0, 0, 1, 70), (80, 80, 0, 30)], [(0, 0, 0, 60)])
    view = ShownDetections.of(matched(images, [], [], []))
    assert images_of("missed", view, images) == [(1, 1), (2, 0), (0, 0)]


def test_objects_that_were_found_are_not_missed(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0, SIDE), (120, 80, 1, 20)])
    view = ShownDetections.of(matched(images, [(0, 0, 0, 0.9)]))
    assert images_of("missed", view, images) == [(0, 1)]


def test_more_errors_come_before_higher_scores(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)], [(0, 0, 0), (100, 20, 0)], [(0, 0, 0)] * 3)
    found = [(0, 0, 0, 0.9), (130, 80, 0, 0.95)], [(0, 0, 0, 0.9)], [(0, 0, 0, 0.9)]
    view = ShownDetections.of(matched(images, *found))
    assert images_of("worst", view, images) == [(2, 0), (0, 0)]


def test_samples_are_spread_over_the_test_set(tmp_path):
    images = images_with(tmp_path, *[[(0, 0, 0)]] * 15, size=(8, 8))
    assert images_of("sample", ShownDetections.of(matched(images, *[[]] * 15)), images) == [
        (i, None) for i in range(0, 15, 2)
    ]


def test_of_many_classes_the_ends_are_chosen(tmp_path):
    names = tuple(f"class {i}" for i in range(30))
    images = images_with(tmp_path, *[[(0, 0, i)] for i in range(30)], size=(8, 8), classes=names)
    found = [[(0, 0, i, 0.9)] if i % 3 else [] for i in range(30)]
    view = ShownDetections.of(matched(images, *found))
    labels = {label for kind in ("best", "worst") for _, label in images_of(kind, view, images)}
    assert len(labels) == 20
    assert {i for i in range(30) if not i % 3} <= labels  # the 10 worst


# What is drawn.


def written(tmp_path, images, matches):
    path = tmp_path / "pictures" / "ftfc7.jsonl"
    write_pictures(path, matches, images)
    return read_pictures(path)


def test_boxes_are_drawn_in_the_colour_of_what_became_of_them(tmp_path, three_kinds):
    images, matches = three_kinds
    samples = [picture for picture in written(tmp_path, images, matches) if picture.kind == "sample"]
    assert [picture.caption for picture in samples[:3]] == [
        "0.png: 1 found, 0 wrong, 0 missed",
        "1.png: 1 found, 0 wrong, 1 missed",
        "2.png: 1 found, 1 wrong, 0 missed",
    ]
    assert close(pixels(samples[0])[59, 30], FOUND)
    assert close(pixels(samples[1])[79, 130], MISSED)
    assert close(pixels(samples[2])[139, 160], WRONG)
    assert (np.abs(pixels(samples[5]).astype(int) - 128) < 3).all()


def test_large_images_are_reduced_with_their_boxes(tmp_path):
    images = images_with(tmp_path, [(100, 300, 0, 400)], size=(720, 1440))
    picture = written(tmp_path, images, matched(images, []))[0]
    drawn = pixels(picture)
    assert drawn.shape == (360, 180, 3)
    assert close(drawn[174, 75], MISSED)  # the last row of pixels of the box, (300 + 400) / 4 - 1
    assert not close(drawn[176, 75], MISSED)


def test_pictures_of_a_class_show_that_class_only(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0), (100, 20, 1)])
    matches = matched(images, [(0, 0, 0, 0.9), (100, 20, 1, 0.9)])
    best = [picture for picture in written(tmp_path, images, matches) if picture.kind == "best"]
    assert [picture.class_name for picture in best] == ["cat", "dog"]
    assert close(pixels(best[0])[59, 30], FOUND)
    assert not close(pixels(best[0])[79, 130], FOUND)


def test_boxes_that_reach_outside_and_tiny_ones_are_drawn(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0, 1), (3, 3, 1, 0.2)], size=(9, 7))
    matches = matched(images, [(-50, -20, 0, 0.9), (5, 5, 1, 0.5)])
    assert [picture.kind for picture in written(tmp_path, images, matches)] == ["sample", "worst", "worst", "missed"]


def test_names_of_images_are_printable(tmp_path):
    images = images_with(tmp_path, [(0, 0, 0)])
    (tmp_path / "0.png").rename(tmp_path / "a\nb.png")
    images = annotated_files(str(tmp_path), ["a\nb.png"], [images.objects(0)], images.classes)
    assert written(tmp_path, images, matched(images, []))[0].caption.startswith("a\\nb.png: ")


# Files.

JPEG = base64.b64encode(b"\xff\xd8\xff...").decode()
PICTURE = {"kind": "best", "class_name": "cat", "caption": "0.png", "jpeg": JPEG}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "5",
        "{}",
        json.dumps(PICTURE | {"kind": "other"}),
        json.dumps(PICTURE | {"caption": 5}),
        json.dumps(PICTURE | {"jpeg": "no base64!"}),
        json.dumps(PICTURE | {"jpeg": base64.b64encode(b"<svg>").decode()}),
        json.dumps(PICTURE | {"jpeg": 5}),
        json.dumps(PICTURE | {"more": 5}),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, line):
    path = tmp_path / "ftfc7.jsonl"
    path.write_text(f"{json.dumps(PICTURE)}\n{line}\n")
    with pytest.raises(ValueError, match=r"^[^\n]*ftfc7\.jsonl:2: not a file of pictures \([^\n]+\)$"):
        read_pictures(path)


def test_the_page_has_the_pictures_of_the_best_row(tmp_path):
    objects = made_objects(30)
    for row, share in (("pool5", 0.3), ("ftfc7", 0.9)):
        path = pictures_file(make_test(tmp_path / "a", objects, row, share=share))
        path.parent.mkdir(exist_ok=True)
        pictures = [PICTURE | {"kind": kind, "caption": f"<{row}> {kind}"} for kind in KINDS]
        path.write_text("".join(f"{json.dumps(picture)}\n" for picture in pictures))
    page = detection_page(read_detector_runs([str(tmp_path)]))
    html = page.html()
    for kind, title in KINDS.items():
        assert f"cat: &lt;ftfc7&gt; {kind}</figcaption>" in html
        assert title in html
    assert f'<img src="data:image/jpeg;base64,{JPEG}"' in html
    assert "pool5&gt;" not in html
    assert "(1 picture, in the HTML file)" in page.markdown()
    assert "base64" not in page.markdown()
