"""Calibration: against the definition, image by image, and on scores that are true probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.results.calibration import BINS, are_probabilities, calibration
from sppnet.results.report_plots import reliability
from sppnet.results.scores import Scores


def made(n=200, classes=5, seed=0, sharpness=1.0):
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.full(classes, 1 / sharpness), n).astype(np.float32)
    labels = random.integers(classes, size=n)
    return Scores(scores, labels, np.array([f"{i}.jpg" for i in range(n)]), {})


def error_by_definition(scores):
    """Guo et al. (2017), equation 3: bin by bin, in the order of their indices."""
    total = 0.0
    for b in range(BINS):
        confidences, hits = [], []
        for row, label in zip(scores.scores.tolist(), scores.labels.tolist(), strict=True):
            highest = max(row)
            if b / BINS <= highest < (b + 1) / BINS or (b == BINS - 1 and highest >= 1):
                confidences.append(highest)
                hits.append(row.index(highest) == label)
        if hits:
            total += len(hits) / len(scores.labels) * abs(np.mean(hits) - np.mean(confidences))
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(2, 7), st.integers(0, 1000))
def test_the_error_is_that_of_its_definition(n, classes, seed):
    scores = made(n, classes, seed)
    result = calibration(scores)
    assert result.error == pytest.approx(error_by_definition(scores), abs=1e-6)
    assert result.counts.sum() == n
    assert (result.right <= result.counts).all()
    assert result.excess_interval[0] < result.excess < result.excess_interval[1] or abs(result.excess) == 1


def test_scores_of_one_that_are_right_are_calibrated_and_wrong_ones_are_not():
    labels, names = np.arange(4), np.array(list("abcd"))
    right = calibration(Scores(np.eye(4, dtype=np.float32), labels, names, {}))
    assert (right.error, right.excess, right.counts[-1], right.right[-1]) == (0, 0, 4, 4)
    wrong = calibration(Scores(np.eye(4, dtype=np.float32)[[1, 2, 3, 0]], labels, names, {}))
    assert (wrong.error, wrong.excess, wrong.right[-1]) == (1, 1, 0)


def test_true_probabilities_have_the_error_that_chance_gives():
    random = np.random.default_rng(1)
    scores = random.dirichlet(np.ones(4), 1000).astype(np.float32)
    errors = []
    for _ in range(40):
        labels = np.array([random.choice(4, p=row / row.sum()) for row in scores.astype(float)])
        result = calibration(Scores(scores, labels, np.array(["a"] * 1000), {}))
        errors.append(result.error)
    assert np.mean(errors) == pytest.approx(result.chance[0], rel=0.1)
    highest = scores.max(axis=1).astype(float)
    bins = np.minimum((15 * highest).astype(int), 14)
    by_chance = [np.abs(np.bincount(bins, highest - (random.random(1000) < highest))).sum() / 1000 for _ in range(5000)]
    assert result.chance[1] == pytest.approx(np.quantile(by_chance, 0.95), rel=0.03)
    assert result.excess_interval[0] < 0 < result.excess_interval[1]


def test_overconfidence_is_positive():
    scores = made()
    sharp = Scores(scores.scores**4 / (scores.scores**4).sum(axis=1, keepdims=True), scores.labels, scores.names, {})
    assert calibration(sharp).excess > calibration(scores).excess > 0


@pytest.mark.parametrize(("rows", "expected"), [([[0.5, 0.5]], True), ([[0.5, 0.6]], False), ([[-1.0, 2.0]], False)])
def test_only_scores_that_add_up_to_one_are_probabilities(rows, expected):
    assert are_probabilities(Scores(np.array(rows, np.float32), np.zeros(1, int), np.array(["a"]), {})) is expected


def test_the_diagram_has_a_point_with_its_interval_for_every_bin_with_images():
    result = calibration(made())
    shares, counts = reliability(result).axes
    ((line, _, (bars,)),) = shares.containers
    filled = result.counts > 0
    np.testing.assert_allclose(line.get_ydata().astype(float), 100 * result.right[filled] / result.counts[filled])
    assert len(bars.get_segments()) == filled.sum()
    assert [bar.get_height() for bar in counts.patches] == result.counts.tolist()
