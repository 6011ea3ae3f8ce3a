"""Matching of detections by the rule of VOC's devkit, average precision, and its intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_detections import found, objects_of, truth
from sppnet.data.objects import annotated_files
from sppnet.metrics import average_precision
from sppnet.results.detections import (
    gather_detections,
)
from sppnet.results.precisions import (
    class_precisions,
    match_detections,
    mean_precision,
    precision_interval,
    resampled_precisions,
)

BOX, OTHER, FAR = (10, 10, 50, 50), (12, 10, 52, 50), (200, 200, 240, 250)


# By hand.


def test_a_find_a_duplicate_a_find_a_wrong_one_and_a_find_of_four_objects():
    images = truth(
        objects_of((BOX, 0), (FAR, 0)), objects_of((BOX, 0)), objects_of((BOX, 0)), objects_of(), classes=("cat",)
    )
    detections = found(
        images, (0, 0, 0.9, BOX), (0, 0, 0.8, OTHER), (1, 0, 0.7, BOX), (3, 0, 0.6, BOX), (0, 0, 0.5, FAR)
    )
    matches = match_detections(detections, images)
    by_score = np.argsort(-detections.scores)
    assert matches.positive[by_score].tolist() == [True, False, True, False, True]
    assert matches.objects[by_score].tolist() == [0, 0, 0, -1, 1]
    assert class_precisions(matches) == pytest.approx([(3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11])  # .563636
    assert class_precisions(matches, points=None) == pytest.approx([(1 + 2 / 3 + 3 / 5) / 4])  # .566667
    assert matches.counts.tolist() == [[2], [1], [1], [0]]


def test_a_detection_never_takes_the_second_best_object():
    images = truth(objects_of((BOX, 0), (OTHER, 0)))
    matches = match_detections(found(images, (0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 0, 0.7, OTHER)), images)
    assert matches.positive.tolist() == [True, False, True]
    assert matches.objects.tolist() == [0, 0, 1]


def test_of_objects_that_overlap_equally_the_first_counts():
    images = truth(objects_of((BOX, 0, True), (BOX, 0)), objects_of((BOX, 0), (BOX, 0, True)))
    matches = match_detections(found(images, (0, 0, 0.9, BOX), (1, 0, 0.9, BOX)), images)
    assert (matches.ignored.tolist(), matches.positive.tolist()) == ([True, False], [False, True])


def test_objects_of_other_classes_and_images_are_not_found():
    images = truth(objects_of((BOX, 1)), objects_of((BOX, 0)))
    matches = match_detections(found(images, (0, 0, 0.9, BOX)), images)
    assert not matches.positive.any()
    assert (matches.objects.tolist(), matches.overlaps.tolist()) == ([-1], [0.0])


def test_difficult_objects_count_neither_way():
    images = truth(objects_of((BOX, 0, True), (FAR, 0)))
    matches = match_detections(found(images, (0, 0, 0.9, BOX), (0, 0, 0.8, OTHER), (0, 0, 0.7, FAR)), images)
    assert matches.ignored.tolist() == [True, True, False]
    assert matches.positive.tolist() == [False, False, True]
    assert matches.counts.tolist() == [[1, 0]]
    assert class_precisions(matches)[0] == 1


def test_the_threshold_itself_is_reached():
    images = truth(objects_of(((0, 0, 10, 10), 0)))
    half = found(images, (0, 0, 0.9, (0, 0, 10, 5)))
    assert match_detections(half, images).positive.all()
    assert not match_detections(half, images, threshold=0.51).positive.any()
    seventh = found(images, (0, 0, 0.9, (0, 0, 10, 7)))
    assert match_detections(seventh, images, threshold=0.7).positive.all()


def test_of_equal_scores_the_first_box_finds_the_object_in_whatever_order_they_come():
    images = truth(objects_of((BOX, 0)))
    for boxes in ((BOX, OTHER), (OTHER, BOX)):
        matches = match_detections(found(images, *((0, 0, 0.5, box) for box in boxes)), images)
        assert tuple(matches.detections.boxes[matches.positive][0]) == BOX


def test_classes_without_objects_are_nan_and_left_out_of_the_mean():
    images = truth(objects_of((BOX, 0), (FAR, 1, True)), classes=("cat", "dog", "fox"))
    matches = match_detections(found(images, (0, 0, 0.9, BOX), (0, 2, 0.9, BOX)), images)
    np.testing.assert_array_equal(class_precisions(matches), [1, math.nan, math.nan])
    assert mean_precision(matches) == 1
    assert math.isnan(mean_precision(match_detections(found(truth(objects_of())), truth(objects_of()))))


def test_a_class_that_is_never_found_has_precision_zero():
    images = truth(objects_of((BOX, 0)))
    assert class_precisions(match_detections(found(images), images))[0] == 0


@pytest.mark.parametrize("threshold", [0, -1, 1.1, math.nan])
def test_a_threshold_outside_its_range_is_refused(threshold):
    images = truth(objects_of((BOX, 0)))
    with pytest.raises(ValueError, match=r"threshold=.*: must be above 0 and at most 1"):
        match_detections(found(images), images, threshold)


def test_detections_of_other_images_or_classes_are_refused():
    images = truth(objects_of((BOX, 0)), objects_of())
    with pytest.raises(ValueError, match="detections of 2 images: must be of 1"):
        match_detections(found(images), truth(objects_of()))
    with pytest.raises(ValueError, match="the images have other ones"):
        match_detections(found(images), truth(objects_of(), objects_of(), classes=("dog", "cat")))
    renamed = annotated_files("root", ["JPEGImages/0.jpg", "x.jpg"], [objects_of(), objects_of()], images.classes)
    with pytest.raises(ValueError, match=r"image 1 is JPEGImages/1\.jpg, must be x\.jpg"):
        match_detections(found(images), renamed)


# Against the devkit.


def devkit_ranking(detections, images, label, threshold):
    """VOCevaldet of the VOC devkit, line by line: boxes count from 1, the last pixel included, widths are + 1.

    Returns (scores, true positives, objects that count), without the detections that it ignores.
    """
    to_devkit = lambda box: (box[0] + 1, box[1] + 1, box[2], box[3])  # noqa: E731
    objects, count = {}, 0
    for i in range(len(images)):
        of_image = images.objects(i)
        chosen = np.flatnonzero(of_image.labels == label)
        objects[i] = [
            {"box": to_devkit(of_image.boxes[j]), "difficult": of_image.difficult[j], "found": False} for j in chosen
        ]
        count += sum(not one["difficult"] for one in objects[i])

    scores, positive = [], []
    of_class = [k for k in range(len(detections)) if detections.labels[k] == label]
    for k in sorted(of_class, key=lambda k: -detections.scores[k]):
        box, largest, best = to_devkit(detections.boxes[k].astype(float)), -math.inf, None
        for one in objects[detections.images[k]]:
            other = one["box"]
            shared = (max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
            width, height = shared[2] - shared[0] + 1, shared[3] - shared[1] + 1
            if width > 0 and height > 0:
                union = area(box) + area(other) - width * height
                if width * height / union > largest:
                    largest, best = width * height / union, one
        if largest >= threshold:
            if best["difficult"]:
                continue
            positive.append(not best["found"])
            best["found"] = True
        else:
            positive.append(False)
        scores.append(detections.scores[k])
    return scores, positive, count


def area(box):
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


BOXES = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 7), st.integers(1, 7)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
IMAGES = st.lists(st.lists(st.tuples(BOXES, st.integers(0, 1), st.booleans()), max_size=5), min_size=1, max_size=4)
FOUND = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), BOXES), max_size=20)


@given(IMAGES, FOUND, st.sampled_from([0.3, 0.5, 0.7]), st.randoms(use_true_random=False))
def test_matching_is_that_of_the_devkit(images, boxes, threshold, random):
    images = truth(*(objects_of(*objects) for objects in images))
    scores = random.sample(range(1000), len(boxes))
    scored = [(i % len(images), label, score, box) for (i, label, box), score in zip(boxes, scores, strict=True)]
    detections = found(images, *scored)
    matches = match_detections(detections, images, threshold)
    precisions = {points: class_precisions(matches, points) for points in (11, None)}
    for label in (0, 1):
        ranking = devkit_ranking(detections, images, label, threshold)
        mine = np.flatnonzero((detections.labels == label) & ~matches.ignored)
        mine = mine[np.argsort(-detections.scores[mine])]
        assert (detections.scores[mine].tolist(), matches.positive[mine].tolist()) == (ranking[0], ranking[1])
        assert matches.counts[:, label].sum() == ranking[2]
        for points, values in precisions.items():
            expected = average_precision(ranking[0], np.array(ranking[1], bool), ranking[2], points)
            np.testing.assert_allclose(values[label], expected, rtol=1e-12)


@given(IMAGES, FOUND, st.randoms(use_true_random=False))
def test_average_precision_does_not_depend_on_the_order_of_equal_scores(images, boxes, random):
    images = truth(*(objects_of(*objects) for objects in images))
    values = []
    for _ in range(2):
        detections = found(images, *((i % len(images), label, 0.5, box) for i, label, box in boxes))
        values.append(class_precisions(match_detections(detections, images)))
        random.shuffle(boxes)
    np.testing.assert_array_equal(*values)


# Intervals.


def many_images(n=40):
    random = np.random.default_rng(0)
    images = truth(*(objects_of((BOX, int(random.integers(2))), (FAR, 0)) for _ in range(n)))
    detected = [
        (i, int(random.integers(2)), float(random.random()), (BOX, FAR)[random.integers(2)])
        for i in range(n)
        for _ in range(3)
    ]
    return images, found(images, *detected)


def test_a_resample_counts_an_image_as_often_as_it_is_drawn():
    images, detections = many_images(7)
    value = resampled_precisions(match_detections(detections, images), resamples=3)[2]
    draw = np.random.default_rng(0).integers(7, size=(3, 7))[2]
    drawn = annotated_files("root", [f"{k}.jpg" for k in range(7)], [images.objects(i) for i in draw], images.classes)
    per_image = list(detections)
    again = gather_detections([per_image[i]._replace(name=f"{k}.jpg") for k, i in enumerate(draw)], images.classes)
    assert value == mean_precision(match_detections(again, drawn))


def test_the_interval_holds_the_mean_and_narrows_with_the_images():
    widths = []
    for n in (40, 400):
        images, detections = many_images(n)
        matches = match_detections(detections, images)
        low, high = precision_interval(matches)
        assert 0 <= low < mean_precision(matches) < high <= 1
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 5  # sqrt(10) is 3.2
