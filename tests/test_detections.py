"""Detections: files that come back exactly, matching by the rule of VOC's devkit, average precision, intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.data.objects import Objects, annotated_files
from sppnet.metrics import average_precision
from sppnet.results.detections import (
    ImageDetections,
    class_precisions,
    gather_detections,
    match_detections,
    mean_precision,
    precision_interval,
    read_detections,
    resampled_precisions,
    write_detections,
    write_voc_results,
)

BOX, OTHER, FAR = (10, 10, 50, 50), (12, 10, 52, 50), (200, 200, 240, 250)


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


# Files.

FLOATS = st.floats(-1e6, 1e6, width=32)
SAVED = st.lists(st.lists(st.tuples(st.integers(0, 1), FLOATS, FLOATS, FLOATS, FLOATS, FLOATS), max_size=4), max_size=4)


def detections_of(images):
    per_image = []
    for i, rows in enumerate(images):
        boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for _, _, a, b, c, d in rows], np.float32)
        labels, scores = [row[0] for row in rows], [row[1] for row in rows]
        per_image.append(
            ImageDetections(f"ü{i}.jpg", np.array(labels, np.int64), np.array(scores, np.float32), boxes.reshape(-1, 4))
        )
    return gather_detections(per_image, ("cat", "dog"), {"network": "zf5", "n": 1})


@settings(deadline=None, max_examples=30)  # each flushes a file to the disk
@given(SAVED)
def test_detections_come_back_exactly(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("saved") / "detections.jsonl"
    detections = detections_of(images)
    write_detections(path, detections, classes=detections.classes, images=len(images), about=detections.about)
    back = read_detections(path)
    assert (back.names, back.classes, back.about) == (detections.names, detections.classes, detections.about)
    for name in ("images", "labels", "scores", "boxes"):
        array, expected = getattr(back, name), getattr(detections, name)
        assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_the_file_has_a_line_per_image_after_the_one_about_it(tmp_path):
    images = truth(objects_of(), objects_of())
    detections = found(images, (1, 1, 0.5, BOX))
    path = tmp_path / "detections.jsonl"
    write_detections(path, iter(detections), classes=("cat", "dog"), images=2, about={"network": "zf5"})
    assert path.read_text() == (
        '{"about":{"network":"zf5"},"classes":["cat","dog"],"images":2}\n'
        '{"name":"JPEGImages/0.jpg","labels":[],"scores":[],"boxes":[]}\n'
        '{"name":"JPEGImages/1.jpg","labels":[1],"scores":[0.5],"boxes":[[10.0,10.0,50.0,50.0]]}\n'
    )


def one_image(label=0, score=0.5, box=BOX, name="a.jpg"):
    return ImageDetections(name, np.array([label]), np.array([score], np.float32), np.array([box], np.float32))


@pytest.mark.parametrize(
    ("detected", "words"),
    [
        ([one_image(label=2)], r"a\.jpg: has labels that are no whole numbers from 0 to 1"),
        ([one_image(label=-1)], r"a\.jpg: has labels"),
        ([one_image(label=0.0)], r"a\.jpg: has labels"),
        ([one_image(score=math.nan)], "not finite"),
        ([one_image(box=(5, 0, 4, 1))], "inside out"),
        ([one_image(box=(0, 5, 1, 4))], "inside out"),
        ([one_image()._replace(scores=np.zeros(2))], r"scores \(2,\)"),
        ([], "detections of 0 images, must be of 1"),
        ([one_image(), one_image(name="b.jpg")], "detections of 2 images, must be of 1"),
    ],
)
def test_wrong_detections_are_not_written_and_nothing_is_lost(tmp_path, detected, words):
    path = tmp_path / "detections.jsonl"
    path.write_text("old")
    with pytest.raises(ValueError, match=words):
        write_detections(path, detected, classes=("cat", "dog"), images=1, about={})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


HEADER = '{"about":{},"classes":["cat"],"images":1}'


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], r":1: not a file of detections"),
        (["[]"], r":1: not a file"),
        (["{}"], r":1: .*'about' is missing"),
        (['{"about":[],"classes":["cat"],"images":1}'], ":1: .*about must be keys"),
        ([HEADER], ":1: .*detections of 0 images, must be of 1"),
        ([HEADER, "{"], ":2: not a file"),
        ([HEADER, '{"name":"a"}'], ":2: .*'labels' is missing"),
        ([HEADER, '{"name":1,"labels":[],"scores":[],"boxes":[]}'], ":2: .*name must be text"),
        (
            [HEADER, '{"name":"a","labels":[0.5],"scores":[1],"boxes":[[0,0,1,1]]}'],
            ":2: .*labels must be whole numbers",
        ),
        ([HEADER, '{"name":"a","labels":[1],"scores":[1],"boxes":[[0,0,1,1]]}'], ":2: .*labels that are no whole"),
        ([HEADER, '{"name":"a","labels":[0],"scores":[NaN],"boxes":[[0,0,1,1]]}'], ":2: .*not finite"),
        ([HEADER, '{"name":"a","labels":[0],"scores":[1],"boxes":[[0,0,1]]}'], ":2: not a file"),
    ],
)
def test_other_files_are_refused_by_line(tmp_path, lines, words):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=rf"x\.jsonl{words}") as error:
        read_detections(path)
    assert str(error.value).isprintable()


def test_voc_result_files_count_pixels_from_one(tmp_path):
    images = truth(objects_of(), objects_of())
    detections = found(images, (0, 0, 0.125, (0, 0, 500, 375)), (1, 0, 0.1, (1.5, 2, 3, 4)))
    files = write_voc_results(tmp_path, detections, "val")
    assert [file.name for file in files] == ["comp3_det_val_cat.txt", "comp3_det_val_dog.txt"]
    assert files[0].read_text() == "0 0.125 1 1 500 375\n1 0.100000001 2.5 3 3 4\n"
    assert files[1].read_text() == ""
    same = annotated_files("root", ["a/0.jpg", "b/0.jpg"], [objects_of()] * 2, ("cat",))
    with pytest.raises(ValueError, match="0: two images have this name"):
        write_voc_results(tmp_path, found(same))


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
