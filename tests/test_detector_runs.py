"""Tests of detectors: found, checked, grouped over seeds, compared in pairs, and combined."""

import json

import numpy as np
import pytest

from made_detections import IMAGENET, made_about, made_detections, made_objects, make_test
from made_runs import make_run
from sppnet.results.detection_combinations import combine_tests, combined_detectors
from sppnet.results.detections import ImageDetections, read_detections
from sppnet.results.detector_runs import by_protocol, by_row, gain, read_detector_runs, row_before, row_order
from sppnet.results.precisions import match_detections, mean_precision, precision_interval, resampled_precisions
from sppnet.results.statistics import bootstrap_interval

OBJECTS = made_objects(30)


def read(*places):
    return read_detector_runs([str(place) for place in places])


# Finding and checking files.


def test_detections_are_found_below_runs_and_folders_and_named_directly(tmp_path):
    path = make_test(tmp_path / "runs" / "a", OBJECTS)
    for place in (tmp_path / "runs", tmp_path / "runs" / "a", tmp_path / "runs" / "a" / "detections"):
        assert [test.path for test in read(place)] == [path]
    assert [test.path for test in read(tmp_path / "runs", f"{tmp_path}/runs/*")] == [path]


def test_only_detections_are_read(tmp_path):
    path = make_test(tmp_path / "a", OBJECTS)
    for other in ("parts/ftfc7-0.jsonl", "pictures/ftfc7.jsonl", "notes.txt"):
        (path.parent / other).parent.mkdir(exist_ok=True)
        (path.parent / other).write_text("{")
    assert [test.path for test in read(tmp_path)] == [path]


def test_a_pattern_without_runs_and_detections_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"^runs=.*nowhere: no run directories there, and no detections$"):
        read(tmp_path / "nowhere")
    make_run(tmp_path, "single")
    assert read(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"about": {}}', '{"about": 5, "classes": [], "images": 0}\n'])
def test_a_damaged_first_line_is_named(tmp_path, content):
    path = make_test(tmp_path / "a", OBJECTS)
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^[^\n]*ftfc7\.jsonl:1: not a file of detections \([^\n]+\)$"):
        read(tmp_path)


def test_a_damaged_later_line_is_named_when_it_is_needed(tmp_path):
    path = make_test(tmp_path / "a", OBJECTS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], lines[5][:20], *lines[6:]]))
    (test,) = read(tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]*ftfc7\.jsonl:6: not a file of detections \([^\n]+\)$"):
        _ = test.measured


@pytest.mark.parametrize("key", sorted(made_about(OBJECTS)))
def test_every_key_is_needed(tmp_path, key):
    path = make_test(tmp_path / "a", OBJECTS)
    header, *images = path.read_text().splitlines()
    content = json.loads(header)
    del content["about"][key]
    path.write_text("\n".join([json.dumps(content), *images]))
    with pytest.raises(ValueError, match=rf"ftfc7\.jsonl:1: not detections of a detector \({key} is missing\)$"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": []}, "scales must be a list of whole numbers from 1"),
        ({"scales": [688.5]}, "scales must be"),
        ({"n_train": 0}, "n_train must be a whole number from 1"),
        ({"suppression_overlap": 2}, "suppression_overlap must be a number from 0 to 1"),
        ({"network": {"on_imagenet": 1}}, "network.on_imagenet must be true or false"),
    ],
)
def test_what_is_said_about_detections_is_checked(tmp_path, changes, words):
    make_test(tmp_path / "a", OBJECTS, **changes)
    with pytest.raises(ValueError, match=r"ftfc7\.jsonl:1: not detections of a detector") as error:
        read(tmp_path)
    assert words in str(error.value)


def test_without_the_objects_nothing_is_measured(tmp_path):
    path = make_test(tmp_path / "a", OBJECTS)
    (test,) = read(tmp_path)
    place = path.with_name("objects.jsonl")
    place.unlink()
    with pytest.raises(ValueError, match=rf"^{place}: missing; it has the objects that ftfc7\.jsonl is compared with$"):
        _ = test.measured


def test_objects_of_other_images_are_refused(tmp_path):
    path = make_test(tmp_path / "a", OBJECTS)
    make_test(tmp_path / "a", made_objects(30, seed=5), "fc6")
    test = next(test for test in read(tmp_path) if test.path == path)
    with pytest.raises(ValueError, match=r"objects\.jsonl: not the objects that ftfc7\.jsonl was tested on$"):
        _ = test.measured


def test_detections_of_other_images_than_the_objects_are_refused(tmp_path):
    other = made_objects(30, prefix="others/")
    make_test(tmp_path / "a", OBJECTS, found=made_detections(other))
    with pytest.raises(ValueError, match=r"ftfc7\.jsonl: detections of other images or classes than objects\.jsonl"):
        _ = read(tmp_path)[0].measured


# Measuring.


def test_a_row_has_the_precisions_of_its_detections(tmp_path):
    path = make_test(tmp_path / "a", OBJECTS)
    (row,) = by_row(read(tmp_path))
    matches = match_detections(read_detections(path), OBJECTS)
    assert row.mean() == pytest.approx(mean_precision(matches))
    assert row.all_points() == pytest.approx(mean_precision(matches, points=None))
    assert row.interval() == pytest.approx(precision_interval(matches), abs=2e-3)  # n - 1 instead of n resamples
    assert row.counts.sum() == sum((~OBJECTS.objects(i).difficult).sum() for i in range(30))
    # 11 of the 101 recalls are those of the paper's average precision.
    assert row.curves()[:, ::10].mean(axis=1) == pytest.approx(row.class_means())
    assert (np.diff(row.curves()) <= 0).all()


def test_detectors_that_differ_in_seeds_are_averaged(tmp_path):
    for seed, share in ((0, 0.5), (1, 0.9)):
        make_test(tmp_path / f"{seed}", OBJECTS, share=share, seed=seed)
    make_test(tmp_path / "2", OBJECTS, share=0.7, checkpoint="other", network={"seed": 7})
    (row,) = by_row(read(tmp_path))
    assert len(row.runs) == 3
    assert row.mean() == pytest.approx(np.mean(row.means()))
    assert len(set(row.means())) == 3
    resampled = np.stack([test.measured.resampled for test in row.tests])
    low, high = bootstrap_interval(row.means(), resampled)
    assert row.interval() == (max(0, low), min(1, high))
    assert row.class_means() == pytest.approx(np.mean([test.measured.precisions for test in row.tests], axis=0))


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({"setting": "{1}"}, {}),
        ({"scales": [480, 688]}, {}),
        ({"data_text": "other"}, {}),
        ({"n_train": 61}, {}),
        ({}, {"setting": "wider"}),
        ({}, {"trained_on": "shapes"}),
    ],
)
def test_what_differs_in_more_than_seeds_is_not_averaged(tmp_path, changes, network):
    make_test(tmp_path / "a", OBJECTS)
    make_test(tmp_path / "b", OBJECTS, seed=1, network=network, **changes)
    assert len(by_row(read(tmp_path))) == 2


def test_the_same_detector_does_not_count_twice(tmp_path):
    paths = [make_test(tmp_path / name, OBJECTS) for name in "ab"]
    with pytest.raises(ValueError, match=rf"^{paths[0]} and {paths[1]}: the same detector; name only one of them"):
        by_row(read(tmp_path))


def test_other_objects_are_another_protocol(tmp_path):
    make_test(tmp_path / "a", OBJECTS)
    make_test(tmp_path / "b", made_objects(30, seed=1))
    assert len(by_protocol(by_row(read(tmp_path)))) == 2


# Intervals.


def test_the_interval_of_one_run_is_over_images_only():
    resampled = np.random.default_rng(0).normal(0.5, 0.1, (1, 200))
    low, high = bootstrap_interval([0.5], resampled)
    assert high - 0.5 == pytest.approx(0.5 - low)
    assert high - 0.5 == pytest.approx(1.96 * resampled.std(ddof=1), rel=1e-3)


def test_runs_that_differ_widen_the_interval_by_students_quantile():
    resampled = np.full((3, 200), 0.5)  # images do not matter
    low, high = bootstrap_interval([0.4, 0.5, 0.6], resampled)
    assert high - low == pytest.approx(2 * 4.3027 * 0.1 / np.sqrt(3), rel=1e-4)


def test_runs_that_agree_leave_the_interval_over_images():
    resampled = np.tile(np.random.default_rng(0).normal(0.5, 0.1, 200), (3, 1))
    assert bootstrap_interval([0.5] * 3, resampled) == pytest.approx(bootstrap_interval([0.5], resampled[:1]))


@pytest.mark.parametrize("runs", [0, 2])
def test_an_interval_needs_as_many_rows_as_runs(runs):
    with pytest.raises(ValueError, match="must be as many, and at least one"):
        bootstrap_interval([0.5] * runs, np.zeros((1, 9)))


def test_intervals_cover_the_mean_over_images_and_runs():
    """Of measures that are means over images, with effects of image, run, and both together."""
    random, hits, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        values = random.normal(size=(1, 50)) + 0.3 * random.normal(size=(3, 1)) + random.normal(size=(3, 50))
        draws = np.random.default_rng(0).integers(50, size=(100, 50))
        low, high = bootstrap_interval(values.mean(axis=1), values[:, draws].mean(axis=2))
        hits += low <= 0 <= high
    assert 0.92 <= hits / trials <= 1


def test_gains_are_on_the_same_images_and_runs(tmp_path):
    paths = {
        (row, seed): make_test(tmp_path / f"{seed}", OBJECTS, row, share=share, seed=seed)
        for row, share in (("ftfc6", 0.5), ("ftfc7", 0.8))
        for seed in (0, 1)
    }
    make_test(tmp_path / "2", OBJECTS, "ftfc7", seed=2)  # has no partner and does not count
    rows = by_row(read(tmp_path))
    found = gain(rows[1], rows[0])
    matched = {key: match_detections(read_detections(path), OBJECTS) for key, path in paths.items()}
    values = [mean_precision(matched["ftfc7", seed]) - mean_precision(matched["ftfc6", seed]) for seed in (0, 1)]
    resampled = [
        resampled_precisions(matched["ftfc7", seed]) - resampled_precisions(matched["ftfc6", seed]) for seed in (0, 1)
    ]
    low, high = bootstrap_interval(values, np.stack(resampled))
    assert found == (pytest.approx(np.mean(values)), max(-1, low), min(1, high), 2)


def test_without_a_common_run_there_is_no_gain(tmp_path):
    make_test(tmp_path / "a", OBJECTS, "ftfc6")
    make_test(tmp_path / "b", OBJECTS, "ftfc7", seed=1)
    rows = by_row(read(tmp_path))
    assert gain(rows[1], rows[0]) is None


# Order.


def test_rows_are_in_the_papers_order(tmp_path):
    names = [
        "pool5",
        "pool5_bb",
        "fc6",
        "fc7",
        "fc7_bb",
        "ftfc6",
        "ftfc7",
        "ftfc7_bb",
        "rcnn_pool5",
        "rcnn_fc7",
        "other",
    ]
    for name in reversed(names):
        make_test(tmp_path / "a", OBJECTS, name)
    make_test(tmp_path / "b", OBJECTS, "pool5", network=IMAGENET)
    rows = by_row(read(tmp_path))
    assert [row.name for row in rows] == ["pool5", *names]
    assert rows[0].about["network"]["on_imagenet"]
    assert sorted(names, key=row_order) == names


@pytest.mark.parametrize(
    ("names", "before"),
    [
        (["pool5", "fc6", "ftfc6", "ftfc7", "ftfc7_bb"], [None, "pool5", "fc6", "ftfc6", "ftfc7"]),
        (["fc6", "fc7", "ftfc6", "ftfc7", "ftfc7_bb"], [None, "fc6", "fc6", "fc7", "ftfc7"]),
        (["pool5", "pool5_bb", "fc6"], [None, "pool5", "pool5"]),
        (["pool5_bb", "fc6", "ftfc7_bb"], [None, None, "fc6"]),
        (["fc6", "fc7", "rcnn_fc7", "rcnn_fc7_bb"], [None, "fc6", "fc7", "rcnn_fc7"]),
    ],
)
def test_gains_are_counted_from_the_row_that_differs_least(tmp_path, names, before):
    for name in names:
        make_test(tmp_path / "a", OBJECTS, name)
        make_test(tmp_path / "b", OBJECTS, name, scales=[480])
    rows = [row for row in by_row(read(tmp_path)) if row.scales == (688,)]
    found = [row_before(row, by_row(read(tmp_path))) for row in rows]
    assert [one and one.name for one in found] == before
    assert all(one.scales == (688,) for one in found if one)


# Combinations.


def slow_union(images, overlap, most):
    """Suppresses greedily, class by class, by the definition."""
    kept = []
    boxes = [
        (-float(score), int(label), tuple(box))
        for one in images
        for label, score, box in zip(one.labels, one.scores, one.boxes.astype(float), strict=True)
    ]
    for score, label, box in sorted(boxes):
        same = [other for _, other_label, other in kept if other_label == label]
        if len(same) < most and all(overlap_of(box, other) <= overlap for other in same):
            kept.append((score, label, box))
    return kept


def overlap_of(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return width * height / (area - width * height)


def random_detections(seed, k=25):
    random = np.random.default_rng(seed)
    for i in range(len(OBJECTS)):
        corners = random.integers(0, 60, (k, 2))
        boxes = np.concatenate([corners, corners + random.integers(20, 60, (k, 2))], axis=1).astype(np.float32)
        labels = random.integers(0, 3, k)
        yield ImageDetections(OBJECTS.name(i), labels, random.random(k).astype(np.float32), boxes)


@pytest.mark.parametrize(("overlap", "most"), [(0.3, 100), (0.3, 2), (0.0, 100), (1.0, 100)])
def test_the_union_is_suppressed_once_more(tmp_path, overlap, most):
    settings = {"suppression_overlap": overlap, "most": most}
    for seed in (0, 1):
        make_test(tmp_path / f"{seed}", OBJECTS, found=random_detections(seed), checkpoint=f"{seed}", **settings)
    detections, objects = combine_tests(read(tmp_path)).row.tests[0].read()
    assert objects.names == OBJECTS.names
    for one, parts in zip(detections, zip(random_detections(0), random_detections(1), strict=True), strict=True):
        expected = slow_union(parts, overlap, most)
        found = [(-float(s), int(label), tuple(b)) for label, s, b in zip(*one[1:], strict=True)]
        assert sorted(found) == sorted(expected)


def test_detectors_are_combined_by_the_ends_of_their_paths(tmp_path):
    for name, checkpoint in (("a", "one"), ("b", "two")):
        for row in ("ftfc7", "ftfc7_bb"):
            make_test(tmp_path / name, OBJECTS, row, checkpoint=checkpoint)
    one = combined_detectors("a/detections/ftfc7 + b/detections/ftfc7_bb", read(tmp_path))
    assert [part.name for part in one.parts] == ["ftfc7", "ftfc7_bb"]
    assert one.row.name == "ftfc7 + ftfc7_bb"
    assert 0 < one.row.mean() <= 1
    assert combined_detectors("a/*/ftfc7_bb+b/*/ftfc7_bb", read(tmp_path)).row.name == "ftfc7_bb"


def test_the_order_of_the_parts_does_not_matter(tmp_path):
    for name in "ab":
        make_test(tmp_path / name, OBJECTS, checkpoint=name, share=0.6, seed=ord(name))
    texts = ("a/detections/ftfc7+b/detections/ftfc7", "b/detections/ftfc7+a/detections/ftfc7")
    means = [combined_detectors(text, read(tmp_path)).row.mean() for text in texts]
    assert means[0] == pytest.approx(means[1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftfc7", "must be two or more names of detections joined by +"),
        ("", "must be two or more names"),
        ("fc6++ftfc7", "must be two or more names"),
        ("fc6+fc8", "combine=fc6+fc8: no detections of fc8; there are fc6, ftfc7"),
        ("fc6+ftfc7", "ftfc7 is the name of 2 files, such as "),
        ("fc6+*/fc6", "combine=fc6+*/fc6: must not name the same detections twice"),
    ],
)
def test_other_names_are_refused(tmp_path, text, words):
    make_test(tmp_path / "a", OBJECTS, "fc6")
    for name in "ab":
        make_test(tmp_path / name, OBJECTS, checkpoint=name)
    with pytest.raises(ValueError, match=r"^combine=[^\n]+$") as error:
        combined_detectors(text, read(tmp_path))
    assert words in str(error.value)


@pytest.mark.parametrize(
    "objects", [made_objects(30, seed=1), made_objects(29), made_objects(30, ("ant", "bee", "cat"))]
)
def test_detections_of_other_images_or_classes_are_not_combined(tmp_path, objects):
    first, other = make_test(tmp_path / "a", OBJECTS, "fc6"), make_test(tmp_path / "b", objects, "fc7")
    with pytest.raises(
        ValueError, match=rf"^{first} and {other}: were trained or tested on different images or classes"
    ):
        combined_detectors("fc6+fc7", read(tmp_path))
