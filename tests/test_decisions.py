"""Accuracy and average precision of saved decisions, against slow definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_transfers import made_about, made_several_labels
from sppnet.metrics import average_precision
from sppnet.results.decisions import class_values, measures, resampled_precisions
from sppnet.results.scores import Scores


def decisions(values, labels):
    values = np.array(values, np.float32)
    return Scores(values, np.array(labels), np.array([str(i) for i in range(len(values))]), {})


def test_accuracy_over_images_and_over_classes_differ_where_classes_do_in_size():
    scores = decisions([[1, -1], [1, -1], [1, -1], [1, -1]], [0, 0, 0, 1])
    assert measures(scores) == {"overall": 0.75, "per class": 0.5}
    assert class_values(scores).tolist() == [1, 0]


def test_a_tie_is_wrong():
    assert measures(decisions([[0.5, 0.5], [0.5, 0.5]], [0, 1])) == {"overall": 0, "per class": 0}


def test_classes_without_a_test_image_do_not_count():
    scores = decisions([[1, 0, 0], [0, 0, 1]], [0, 2])
    assert measures(scores) == {"overall": 1, "per class": 1}
    assert np.isnan(class_values(scores)).tolist() == [False, True, False]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 100))
def test_accuracies_are_those_of_a_loop(classes, n, seed):
    random = np.random.default_rng(seed)
    scores = decisions(random.integers(-2, 3, (n, classes)), random.integers(classes, size=n))
    right = []
    for values, label in zip(scores.scores.tolist(), scores.labels, strict=True):
        right.append(all(values[label] > other for i, other in enumerate(values) if i != label))
    by_class = [[r for r, label in zip(right, scores.labels, strict=True) if label == c] for c in range(classes)]
    assert measures(scores)["overall"] == pytest.approx(np.mean(right))
    assert measures(scores)["per class"] == pytest.approx(np.mean([np.mean(c) for c in by_class if c]))


def test_average_precision_by_hand():
    # Class 0 is ranked present, absent, present: precision 1 up to recall 1/2, then 2/3.
    # Class 1 is ranked absent, (ignored), present: precision 1/2. Class 2 is nowhere present.
    labels = np.array([[1, -1, -1], [-1, 0, 0], [1, 1, -1]], np.int8)
    scores = decisions([[3, 3, 1], [2, 2, 2], [1, 1, 3]], labels)
    assert class_values(scores)[:2] == pytest.approx([(6 * 1 + 5 * 2 / 3) / 11, 1 / 2])
    assert np.isnan(class_values(scores)[2])
    assert measures(scores) == pytest.approx(
        {"11 points": ((6 + 10 / 3) / 11 + 1 / 2) / 2, "all points": ((1 + 2 / 3) / 2 + 1 / 2) / 2}
    )


def test_without_anything_present_the_mean_is_no_number():
    values = measures(decisions([[1, 2]], np.array([[-1, 0]], np.int8)))
    assert np.isnan(list(values.values())).all()


def test_resampled_precisions_are_those_of_drawn_images_and_the_same_for_every_feature():
    scores = made_several_labels(made_about(), 1.0, n=30)
    resampled = resampled_precisions(scores)
    draw = np.random.default_rng(0).integers(30, size=(200, 30))[7]
    values = []
    for c in range(4):
        kept = [i for i in draw if scores.labels[i, c] != 0]
        positive = scores.labels[kept, c] == 1
        values.append(average_precision(scores.scores[kept, c], positive, int(positive.sum()), points=11))
    assert resampled[7] == pytest.approx(np.nanmean(values))
    assert len(resampled) == 200
    doubled = Scores(2 * scores.scores, scores.labels, scores.names, {})
    assert np.array_equal(resampled, resampled_precisions(doubled))
