"""Mistakes by class, pair and image, against counting by hand."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sppnet.results.mistakes import Rate, class_rates, confusions, quantile_bins, worst_mistakes
from sppnet.results.scores import Scores


def made(n, classes, seed):
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.ones(classes), n).astype(np.float32)
    return Scores(scores, random.integers(classes, size=n), np.array([f"{i}.jpg" for i in range(n)]), {})


CASES = given(st.builds(made, st.integers(1, 70), st.integers(1, 6), st.integers(0, 1000)))


@settings(deadline=None, max_examples=40)
@CASES
def test_rates_of_classes_are_counted(scores):
    pairs = [(int(label), int(row.argmax())) for label, row in zip(scores.labels, scores.scores, strict=True)]
    images, wrong = Counter(a for a, _ in pairs), Counter(a for a, b in pairs if a != b)
    rates = class_rates(scores)
    assert {label: (rate.wrong, rate.n) for label, rate in rates.items()} == {c: (wrong[c], images[c]) for c in images}
    shares = [rate.share for rate in rates.values()]
    assert shares == sorted(shares, reverse=True)
    for rate in rates.values():
        interval = binomtest(rate.wrong, rate.n).proportion_ci(method="wilson")
        assert (rate.low, rate.high) == pytest.approx((interval.low, interval.high))


@settings(deadline=None, max_examples=40)
@CASES
def test_confusions_are_pairs_of_classes_with_their_images(scores):
    predicted = scores.scores.argmax(axis=1)
    pairs = Counter((a, b) for a, b in zip(scores.labels.tolist(), predicted.tolist(), strict=True) if a != b)
    found = confusions(scores, 1000)
    assert {(one.label, one.taken_for): one.rate.wrong for one in found} == pairs
    assert [one.rate.wrong for one in found] == sorted(pairs.values(), reverse=True)
    for one in found:
        assert one.rate.n == (scores.labels == one.label).sum()
        assert len(one.images) == one.rate.wrong
        assert (scores.labels[one.images] == one.label).all()
        assert (predicted[one.images] == one.taken_for).all()
        assert (np.diff(scores.scores[one.images].max(axis=1)) <= 0).all()
    cut = confusions(scores, 2)
    assert [(one.label, one.taken_for) for one in cut] == [(one.label, one.taken_for) for one in found[:2]]


def test_of_equally_many_confusions_the_larger_share_is_first():
    labels = np.array([0, 0, 0, 1, 2])
    scores = Scores(np.eye(3, dtype=np.float32)[[1, 0, 0, 0, 2]], labels, np.array(list("abcde")), {})
    assert [(one.label, one.taken_for) for one in confusions(scores, 9)] == [(1, 0), (0, 1)]


@settings(deadline=None, max_examples=40)
@CASES
def test_the_worst_mistakes_are_those_of_the_largest_difference(scores):
    differences = {
        i: float(row.max() - row[label])
        for i, (row, label) in enumerate(zip(scores.scores, scores.labels, strict=True))
        if row.max() > row[label]
    }
    worst = worst_mistakes(scores, 5)
    expected = sorted(differences.values(), reverse=True)[:5]
    assert [differences[i] for i in worst] == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=400))
def test_bins_split_all_images_and_no_equal_ones(values):
    values = np.array(values)
    bins = quantile_bins(values)
    assert 1 <= len(bins) <= max(1, min(6, len(values) // 30))
    np.testing.assert_array_equal(sum(one.members.astype(int) for one in bins), 1)
    for one in bins:
        assert (one.low, one.high) == (values[one.members].min(), values[one.members].max())
    for one, following in pairwise(bins):
        assert one.high < following.low


def test_bins_of_different_values_are_equally_large():
    counts = [one.members.sum() for one in quantile_bins(np.random.default_rng(0).permutation(600))]
    assert len(counts) == 6
    assert max(counts) - min(counts) <= 2


def test_a_rate_is_shown_with_its_interval():
    assert Rate.of(81, 263).text == "30.80 (25.53 to 36.62)"
