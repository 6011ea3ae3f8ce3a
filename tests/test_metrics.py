import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.metrics import count_wrong, gain_interval, paired_test, top_k_wrong, wilson_interval


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


def test_without_ties_it_is_topk():
    scores, labels = torch.rand(200, 20), torch.randint(20, (200,))
    for k in (1, 5):
        reference = (scores.topk(k).indices != labels[:, None]).all(dim=1)
        assert torch.equal(top_k_wrong(scores, labels, k), reference)


def test_counts_are_top1_top5_and_images():
    scores = torch.eye(10)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0])
    assert count_wrong(scores, labels).tolist() == [1, 1, 10]


def test_wilson_interval_of_a_known_case():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_mirrors(case):
    wrong, n = case
    low, high = wilson_interval(wrong, n)
    assert 0 <= low <= wrong / n + 1e-12
    assert wrong / n - 1e-12 <= high <= 1
    assert wilson_interval(n - wrong, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("wrong", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(wrong, n):
    with pytest.raises(ValueError, match=f"wrong={wrong}, n={n}"):
        wilson_interval(wrong, n)


def test_paired_test_by_hand():
    first = np.array([1, 1, 1, 1, 1, 0, 0, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 0, 0, 1, 0, 0, 1, 0], bool)
    test = paired_test(first, second)
    assert (test.only_first, test.only_second, test.n) == (5, 1, 10)
    assert test.difference == pytest.approx(0.4)
    # Six disagreements, one or fewer on one side: 2 * (1 + 6) / 64.
    assert test.p == pytest.approx(14 / 64)
    assert test.low < 0.4 < test.high
    other = paired_test(second, first)
    assert (other.difference, other.p) == (pytest.approx(-0.4), test.p)


def test_paired_test_of_equal_networks_finds_nothing():
    wrong = np.array([True, False, True])
    assert paired_test(wrong, wrong)[3:] == (0.0, 0.0, 0.0, 1.0)


def test_paired_test_is_exact_for_many_images():
    first, second = np.zeros(50_000, bool), np.zeros(50_000, bool)
    first[:5000], second[5000:9800] = True, True
    test = paired_test(first, second)
    assert test.p == pytest.approx(
        math.erfc(199 / math.sqrt(9800) / math.sqrt(2)), rel=0.01
    )  # with continuity correction


@pytest.mark.parametrize(("a", "b"), [(3, 4), (0, 0)])
def test_paired_test_needs_the_same_images(a, b):
    with pytest.raises(ValueError, match="must be the same ones"):
        paired_test(np.zeros(a, bool), np.zeros(b, bool))


def test_the_interval_of_a_gain_holds_it_and_narrows_with_images():
    random = np.random.default_rng(0)
    widths = []
    for n in (100, 2000):
        baseline, other = random.random((3, n)) < 0.5, random.random((3, n)) < 0.4
        low, high = gain_interval(baseline, other)
        assert low < baseline.mean() - other.mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_the_interval_of_a_gain_widens_with_the_spread_of_the_seeds():
    alike = np.zeros((3, 1000), bool)
    alike[:, :300] = True
    spread = alike.copy()
    spread[0, 300:400], spread[1, 200:300] = True, False
    none = np.zeros((3, 1000), bool)
    (low, high), (low2, high2) = gain_interval(alike, none), gain_interval(spread, none)
    assert high2 - low2 > high - low
    with pytest.raises(ValueError, match="the same ones"):
        gain_interval(alike, none[:, 1:])
