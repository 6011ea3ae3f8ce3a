"""Top-k errors; average precision against the rules of PASCAL VOC in fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.metrics import average_precision, count_wrong, interpolated_precision, top_k_wrong


def test_top_k_looks_for_the_true_class_among_the_k_highest_scores():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.7, 0.2, 0.1]])
    labels = torch.tensor([2, 2])
    assert top_k_wrong(scores, labels, 1).tolist() == [True, True]
    assert top_k_wrong(scores, labels, 2).tolist() == [False, True]
    assert top_k_wrong(scores, labels, 3).tolist() == [False, False]


def test_more_than_all_classes_are_never_wrong():
    assert not top_k_wrong(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 5).any()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_constant_scores_are_wrong_and_not_lucky(value):
    assert top_k_wrong(torch.full((6, 10), value), torch.arange(6), 5).all()


def test_without_ties_it_equals_torchs_topk():
    scores, labels = torch.rand(200, 20), torch.randint(20, (200,))
    for k in (1, 5):
        reference = (scores.topk(k).indices != labels[:, None]).all(dim=1)
        assert torch.equal(top_k_wrong(scores, labels, k), reference)


def test_counts_are_top1_top5_and_images():
    scores = torch.arange(10.0, 0.0, -1.0).repeat(7, 1)  # class 0 has the highest score, class 9 the lowest
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 9])
    assert count_wrong(scores, labels).tolist() == [6, 2, 7]


# Average precision.


def voc_curve(scores, positive, count):
    """(recall, precision) as fractions at each distinct score."""
    curve = []
    for threshold in set(scores):
        chosen = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        curve.append((Fraction(sum(chosen), count), Fraction(sum(chosen), len(chosen))))
    return curve


def devkit_curve(scores, positive, count):
    """(recall, precision) as VOCevalcls.m computes them: one item after the other, equal scores in their order."""
    ranked = [p for _, p in sorted(zip(scores, positive, strict=True), key=lambda item: -item[0])]
    return [(Fraction(sum(ranked[:i]), count), Fraction(sum(ranked[:i]), i)) for i in range(1, len(ranked) + 1)]


def interpolated(curve, recall):
    return max((precision for reached, precision in curve if reached >= recall), default=Fraction(0))


def reference(curve, count, points):
    """The mean over "for t = 0:0.1:1" of VOCevalcls.m, or the area over `count` equal steps of recall."""
    steps = [Fraction(k, 10) for k in range(11)] if points == 11 else [Fraction(k, count) for k in range(1, count + 1)]
    return float(sum(interpolated(curve, recall) for recall in steps) / len(steps))


@pytest.mark.parametrize(
    ("positive", "count", "eleven", "area"),
    [
        ([1, 1, 0, 0], 2, 1, 1),
        ([0, 0, 0], 4, 0, 0),
        # Recall 1/2 with precision 1, recall 1 with 2/3: recalls 0 to 0.5 are six points, exactly 0.5 included.
        ([1, 0, 1], 2, (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 2 * 2 / 3),
        # A miss first: precision 1/2 at recall 1/2, which the later 2/3 at recall 1 overtakes.
        ([0, 1, 1], 2, 2 / 3, 2 / 3),
        # Three of ten found: recall exactly 0.3, where 0.1 * 3 would be above 3 / 10; nothing is found beyond.
        ([1, 1, 1], 10, 4 / 11, 3 / 10),
        # Seven of ten: 0.7 likewise.
        ([1] * 7 + [0], 10, 8 / 11, 7 / 10),
        ([0] * 9 + [1], 1, 1 / 10, 1 / 10),
    ],
)
def test_average_precision_by_hand(positive, count, eleven, area):
    scores = -np.arange(len(positive))
    assert average_precision(scores, np.array(positive, bool), count) == pytest.approx(eleven, abs=1e-15)
    assert average_precision(scores, np.array(positive, bool), count, points=None) == pytest.approx(area, abs=1e-15)


@pytest.mark.parametrize("points", [11, None])
def test_a_perfect_ranking_is_exactly_one_and_a_number_of_python(points):
    value = average_precision(torch.arange(7.0), torch.arange(7) > 3, 3, points=points)
    assert value == 1
    assert type(value) is float


@pytest.mark.parametrize("points", [11, None])
@pytest.mark.parametrize("score", [0.0, 7, math.inf, -math.inf])
def test_constant_scores_have_the_precision_of_choosing_everything(points, score):
    assert average_precision([score] * 8, np.arange(8) == 5, 1, points=points) == 1 / 8


def test_equal_scores_enter_together_whichever_comes_first():
    for positive in ([True, False, False], [False, True, False]):
        assert average_precision([2, 2, 1], positive, 1, points=None) == 1 / 2


@pytest.mark.parametrize("points", [11, None])
def test_nothing_to_find_is_undefined_and_nothing_found_is_zero(points):
    assert math.isnan(average_precision([3, 1], [False, False], 0, points=points))
    assert math.isnan(average_precision([], [], 0, points=points))
    assert average_precision([], [], 2, points=points) == 0


RANKINGS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=25)
POINTS = st.sampled_from([11, None])


@given(RANKINGS, st.integers(0, 12), POINTS, st.randoms(use_true_random=False))
def test_average_precision_equals_that_of_fractions_in_any_order_of_the_items(ranking, missed, points, random):
    count = max(1, sum(p for _, p in ranking) + missed)
    values = set()
    for _ in range(2):
        scores, positive = [s for s, _ in ranking], np.array([p for _, p in ranking], bool)
        values.add(average_precision(scores, positive, count, points=points))
        expected = reference(voc_curve(scores, positive.tolist(), count), count, points)
        assert math.isclose(max(values), expected, rel_tol=1e-12, abs_tol=1e-15)
        random.shuffle(ranking)
    assert len(values) == 1
    cubes = [(s - 2.0) ** 3 for s, _ in ranking]
    assert average_precision(cubes, [p for _, p in ranking], count, points=points) in values


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 12), POINTS, st.randoms(use_true_random=False))
def test_without_equal_scores_average_precision_is_that_of_the_devkit(positive, missed, points, random):
    scores, count = random.sample(range(100), len(positive)), max(1, sum(positive) + missed)
    expected = reference(devkit_curve(scores, positive, count), count, points)
    assert math.isclose(average_precision(scores, positive, count, points=points), expected, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [True, False], 1, 10), r"points=10: must be 11 or None"),
        (([1, 2], [True], 1), r"scores \(2,\) and positive \(1,\): must both be \(n,\)"),
        (([[1, 2]], [[True, False]], 1), r"scores \(1, 2\) and positive \(1, 2\): must both be \(n,\)"),
        (([1, 2], [1, -1], 1), r"positive: has the type int64, must be bool"),
        (([1, math.nan], [True, False], 1), r"scores: 1 of 2 are NaN, which cannot be ranked"),
        (([1, 2], [True, True], 1), r"count=1: must be at least 2, the number of positive items"),
        (([1, 2], [False, False], -1), r"count=-1: must be at least 0, the number of positive items"),
    ],
)
def test_a_ranking_that_cannot_be_judged_is_refused(arguments, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        average_precision(*arguments)


def test_interpolated_precision_by_hand():
    scores, positive = [0.9, 0.8, 0.7, 0.6], [True, False, True, False]
    # One of three found at precision 1, two at 2/3, the third never.
    assert interpolated_precision(scores, positive, 3, 4) == pytest.approx([1, 1, 2 / 3, 0])
    assert interpolated_precision(scores, positive, 2, 5) == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])
    assert interpolated_precision([], [], 1, 2) == pytest.approx([0, 0])
    assert np.isnan(interpolated_precision(scores, [False] * 4, 0, 3)).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), st.integers(0, 3), st.integers(2, 40))
def test_interpolated_precision_is_the_highest_at_the_recall_or_more(ranking, missed, points):
    scores, positive = [score for score, _ in ranking], np.array([right for _, right in ranking], bool)
    count = int(positive.sum()) + missed
    if count == 0:
        return
    reached = [(Fraction(0), Fraction(0))]
    for least in set(scores):
        chosen = [right for score, right in ranking if score >= least]
        reached.append((Fraction(sum(chosen), count), Fraction(sum(chosen), len(chosen))))
    expected = [
        max((precision for recall, precision in reached if recall >= Fraction(k, points - 1)), default=0)
        for k in range(points)
    ]
    assert interpolated_precision(scores, positive, count, points) == pytest.approx(np.array(expected, float))


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_curve_needs_two_points(points):
    with pytest.raises(ValueError, match=f"points={points}: must be at least 2"):
        interpolated_precision([0.5], [True], 1, points)
