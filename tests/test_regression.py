"""Box regression: offsets and back, and ridge regression on whitened offsets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sppnet.detect.regression import apply_offsets, box_offsets, train_regressor


def made_boxes(n, seed=0):
    random = np.random.default_rng(seed)
    corner = random.uniform(-20, 300, (n, 2))
    return np.concatenate([corner, corner + random.uniform(1, 200, (n, 2))], axis=1)


def test_offsets_by_hand():
    """A window of 10 x 20 pixels, and a box twice as wide whose centre is 5 to the right and 10 below."""
    offsets = box_offsets(np.array([[0, 0, 10, 20]]), np.array([[0, 10, 20, 30]]))
    np.testing.assert_allclose(offsets, [[0.5, 0.5, np.log(2), 0]])


def test_a_window_equal_to_its_object_has_no_offsets():
    boxes = made_boxes(7)
    np.testing.assert_array_equal(box_offsets(boxes, boxes), np.zeros((7, 4)))


sides = st.floats(20, 100)
corners = arrays.arrays(np.float64, (11, 2), elements=st.floats(-100, 500))
sizes = arrays.arrays(np.float64, (11, 2), elements=sides)


@settings(max_examples=50, deadline=None)
@given(corners, sizes, corners, sizes)
def test_offsets_applied_to_windows_are_the_boxes(corner, size, box_corner, box_size):
    windows = np.concatenate([corner, corner + size], axis=1)
    boxes = np.concatenate([box_corner, box_corner + box_size], axis=1)
    moved = apply_offsets(torch.from_numpy(box_offsets(windows, boxes)), torch.from_numpy(windows))
    np.testing.assert_allclose(moved.numpy(), boxes, atol=1e-9)


def test_a_side_grows_or_shrinks_at_most_eight_times():
    windows = torch.tensor([[0.0, 0, 10, 10]])
    moved = apply_offsets(torch.tensor([[0.0, 0, 1e9, -1e9]]), windows)
    torch.testing.assert_close(moved, torch.tensor([[-35, 4.375, 45, 5.625]]))


def slow_regression(features, windows, boxes, ridge):
    """The release's own steps in float64: whiten, solve the normal equations, unwhiten. Returns moved windows."""
    targets = np.array([box_offsets(w[None], b[None])[0] for w, b in zip(windows, boxes, strict=True)])
    mean = targets.mean(axis=0)
    covariance = sum(np.outer(t - mean, t - mean) for t in targets) / len(targets)
    variances, axes = np.linalg.eig(covariance)
    whiten = axes @ np.diag(1 / np.sqrt(variances + 0.001)) @ axes.T
    unwhiten = axes @ np.diag(np.sqrt(variances + 0.001)) @ axes.T
    rows = np.array([np.append(feature, 1) for feature in features.astype(np.float64)])
    weights = np.linalg.solve(rows.T @ rows + ridge * np.eye(rows.shape[1]), rows.T @ ((targets - mean) @ whiten))
    return rows @ weights @ unwhiten + mean


@pytest.mark.parametrize(("n", "d"), [(61, 13), (13, 61), (1, 7)])
@pytest.mark.parametrize("ridge", [0.5, 4000.0])
def test_regressors_are_those_of_the_release_with_fewer_and_with_more_windows_than_values(n, d, ridge):
    windows, boxes = made_boxes(n, 1), made_boxes(n, 2)
    features = np.random.default_rng(3).normal(0, 4, (n, d)).astype(np.float32)
    regressor = train_regressor(features, windows, boxes, ridge=ridge)
    assert regressor.weights.dtype == regressor.bias.dtype == torch.float32
    expected = slow_regression(features, windows, boxes, ridge)
    np.testing.assert_allclose(features @ regressor.weights.numpy() + regressor.bias.numpy(), expected, atol=2e-4)


def test_what_features_tell_of_the_object_is_learned():
    """Features that hold the offsets, and nothing else: new windows are moved onto their objects."""
    windows, boxes = made_boxes(500), made_boxes(500)
    boxes = boxes + np.random.default_rng(1).normal(0, 2, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    features = (100 * box_offsets(windows, boxes)).astype(np.float32)
    regressor = train_regressor(features[:400], windows[:400], boxes[:400], ridge=1.0)
    moved = regressor(torch.from_numpy(features[400:]), torch.from_numpy(windows[400:]))
    before = np.abs(windows[400:] - boxes[400:]).mean()
    assert np.abs(moved.numpy() - boxes[400:]).mean() < 0.05 * before


def test_equal_offsets_of_all_windows_become_the_bias():
    windows = made_boxes(9)
    boxes = apply_offsets(torch.full((9, 4), 0.25, dtype=torch.float64), torch.from_numpy(windows)).numpy()
    regressor = train_regressor(np.zeros((9, 3), np.float32), windows, boxes, ridge=4000.0)
    torch.testing.assert_close(regressor.bias, torch.full((4,), 0.25))


def test_no_windows_are_refused():
    with pytest.raises(ValueError, match="no windows"):
        train_regressor(np.zeros((0, 5), np.float32), np.zeros((0, 4)), np.zeros((0, 4)), ridge=1.0)
