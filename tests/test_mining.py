"""SVMs of a detector: hard negatives image by image give the SVMs of all negatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from sppnet.detect import mining
from sppnet.detect.mining import NegativeMiner, SvmSettings, train_svm

FAST = SvmSettings(train_after=50)


def made_windows(images, windows, length=13, classes=3, seed=0):
    """Makes objects of each class, and images of windows, some of which are no negatives of a class."""
    random = np.random.default_rng(seed)
    centers = random.normal(0, 1, (classes, length))
    positives = [(8 * (center + random.normal(0, 1, (15, length)))).astype(np.float16) for center in centers]
    features = (6 * random.normal(0, 1, (images, windows, length))).astype(np.float16)
    return positives, features, random.random((images, windows, classes)) < 0.9


def mined(positives, features, negative, settings=FAST):
    miner = NegativeMiner(positives, settings)
    for image in range(len(features)):
        miner.add(features[image], negative[image])
    miner.finish()
    return miner


def on_all_negatives(positives, features, negative, settings=FAST):
    return [train_svm(rows, features[negative[:, :, c]], settings) for c, rows in enumerate(positives)]


def test_an_svm_is_that_of_liblinear_with_the_settings_of_the_release():
    """In its primal: the bias is a weight of a constant feature, and regularized; positives' errors count twice."""
    positives, features, _ = made_windows(1, 61)
    weights, bias = train_svm(positives[0], features[0], SvmSettings(C=0.01))
    assert weights.dtype == np.float32
    rows = np.concatenate([positives[0], features[0]]).astype(np.float64)
    labels = np.repeat([1, -1], [15, 61])

    def objective(weights, bias):
        errors = np.maximum(0, 1 - labels * (rows @ weights + bias)) * np.where(labels == 1, 2, 1)
        return (weights @ weights + (bias / 10) ** 2) / 2 + 0.01 * errors.sum()

    least = objective(weights.astype(np.float64), bias)
    random = np.random.default_rng(1)
    for _ in range(300):
        step = random.normal(0, 10 ** random.uniform(-4, -1), 14)
        assert objective(weights + step[:13], bias + step[13]) > least - 1e-6


def negative_count(made):
    return made[2].sum() / made[2].shape[2]


@pytest.mark.parametrize("seed", range(3))
def test_hard_negatives_give_the_svm_of_all_negatives(seed):
    made = made_windows(40, 61, seed=seed)
    miner = mined(*made)
    expected = on_all_negatives(*made)
    cached = [sum(map(len, one.negatives)) for one in miner.classes]
    assert np.median(cached) < 0.25 * negative_count(made)
    for label, (weights, bias) in enumerate(expected):
        np.testing.assert_allclose(miner.weights[:, label], weights, atol=1e-3)
        assert miner.biases[label] == pytest.approx(bias, abs=1e-3)


def test_windows_that_are_no_negatives_of_a_class_do_not_matter_to_it():
    positives, features, negative = made_windows(5, 31)
    changed = features.copy()
    changed[~negative[:, :, 1]] = 99  # as if windows with the object itself were very different
    one, other = (mined(positives, values, negative) for values in (features, changed))
    np.testing.assert_array_equal(one.weights[:, 1], other.weights[:, 1])
    assert not np.array_equal(one.weights[:, 0], other.weights[:, 0])


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 19))
def test_a_miner_that_continues_from_a_saved_state_ends_in_equal_svms(stopped_after):
    positives, features, negative = made_windows(20, 31)
    first = NegativeMiner(positives, FAST)
    for image in range(stopped_after):
        first.add(features[image], negative[image])
    saved = {name: array.copy() for name, array in first.state().items()}

    second = NegativeMiner(positives, FAST)
    second.load_state(saved)
    for image in range(stopped_after, 20):
        second.add(features[image], negative[image])
    second.finish()
    whole = mined(positives, features, negative)
    np.testing.assert_array_equal(second.weights, whole.weights)
    np.testing.assert_array_equal(second.biases, whole.biases)


def test_the_cache_is_bounded_and_keeps_the_hardest():
    positives, features, negative = made_windows(20, 61, classes=1)
    limited = SvmSettings(train_after=50, gigabytes=2 * 100 * 2 * 13 / 1e9)  # twice 100 negatives of 13 values
    miner = mined(positives, features, negative, limited)
    (one,) = miner.classes
    assert 50 < sum(map(len, one.negatives)) <= 100
    assert miner.dropped > 0
    kept = np.concatenate(one.negatives).astype(np.float32) @ one.weights + one.bias
    everything = features[negative[:, :, 0]].astype(np.float32) @ one.weights + one.bias
    assert np.median(kept) > np.median(everything)


def test_an_svm_is_trained_again_when_its_negatives_have_doubled(monkeypatch):
    """Otherwise the cost would grow with the square of the number of images."""
    sizes = []
    original = mining.train_svm

    def notes(positives, negatives, *others):
        sizes.append(len(negatives))
        return original(positives, negatives, *others)

    monkeypatch.setattr(mining, "train_svm", notes)
    miner = mined(*made_windows(60, 61, classes=1))
    (one,) = miner.classes
    assert 3 < len(sizes) < 12
    assert sum(sizes) < 4 * sizes[-1]
    assert one.old == sum(map(len, one.negatives)) <= sizes[-1]


def test_a_class_without_objects_scores_every_window_minus_one():
    positives, features, negative = made_windows(3, 11)
    positives[1] = np.empty((0, 13), np.float16)
    miner = mined(positives, features, negative)
    assert not miner.weights[:, 1].any()
    assert miner.biases[1] == -1
    assert miner.weights[:, 0].any()


def test_no_objects_at_all_are_refused():
    with pytest.raises(ValueError, match="no objects"):
        NegativeMiner([np.empty((0, 7), np.float16)] * 2, SvmSettings())


def test_images_without_negatives_leave_the_svms_as_they_were():
    positives, features, _ = made_windows(2, 7)
    miner = mined(positives, features, np.zeros((2, 7, 3), bool))
    assert not miner.weights.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"C": 0}, "svm.C=0: must be above 0"),
        ({"C": float("nan")}, "svm.C=nan: must be above 0"),
        ({"positive_weight": -1}, "svm.positive_weight=-1"),
        ({"train_after": 0}, "svm.train_after=0: must be at least 1"),
        ({"negative_overlap": 1.5}, "svm.negative_overlap=1.5"),
        ({"hard_score": -0.9}, "svm.hard_score=-0.9: both must be below -1"),
        ({"easy_score": -1.0}, "svm.easy_score=-1.0"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_key(wrong, message):
    with pytest.raises(ValueError, match=message):
        SvmSettings(**wrong)


def test_the_reference_is_liblinear_itself():
    """`train_svm` and LinearSVC on the same rows, as a user would write it."""
    positives, features, _ = made_windows(1, 31)
    weights, bias = train_svm(positives[0], features[0], SvmSettings())
    svm = LinearSVC(C=1e-3, loss="hinge", class_weight={1: 2}, intercept_scaling=10, random_state=0, max_iter=10_000)
    svm.fit(np.concatenate([positives[0], features[0]]).astype(np.float64), np.repeat([1, -1], [15, 31]))
    np.testing.assert_allclose(weights, svm.coef_[0], rtol=1e-6)
    assert bias == pytest.approx(float(svm.intercept_[0]))
