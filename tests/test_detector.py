"""A detector: features of pooled windows, suppression, moved boxes, and its file."""

import numpy as np
import pytest
import torch

from sppnet.detect.detector import (
    BoxRegressors,
    Detector,
    LinearSvms,
    layer_features,
    layer_length,
    load_detector,
    save_detector,
    with_moved_boxes,
)
from sppnet.detect.maps import WindowRules
from sppnet.detect.regression import BoxRegressor
from sppnet.detect.suppression import DetectedBoxes, SuppressionSettings, detect
from sppnet.network import SPPNet, load_network, save_network

ALL = SuppressionSettings(least_score=-1e9, most=1000)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SPPNet("zf5", (2, 1), 4, hidden=13, initialization="fan_in").eval()


def made_boxes(n, seed=0):
    # Fractions, so that no overlap is a limit exactly, which float32 and float64 may decide differently.
    corner = torch.from_numpy(np.random.default_rng(seed).uniform(0, 60, (n, 2)))
    size = torch.from_numpy(np.random.default_rng(seed + 1).uniform(5, 60, (n, 2)))
    return torch.cat([corner, corner + size], dim=1).float()


# Features.


@pytest.mark.parametrize("layers", [["pool5"], ["fc6"], ["fc7"], ["fc7", "pool5"], ["pool5", "fc6", "fc7"]])
def test_features_of_layers_are_those_of_the_network_side_by_side(network, layers):
    images = torch.rand(3, 3, 180, 180) * 255
    with torch.no_grad():
        features = layer_features(network, network.pool(network.maps(images)), layers)
        expected = torch.cat([network.features(images, layer) for layer in layers], dim=1)
    torch.testing.assert_close(features, expected)
    assert features.shape[1] == sum(layer_length(network, layer) for layer in layers)


def test_svms_score_features_times_their_factor():
    svms = LinearSvms("fc7", torch.tensor([[1.0, 0], [0, 2], [1, 1]]), torch.tensor([0.5, -1]), 10.0)
    scores = svms(torch.tensor([[1.0, 2, 3]]))
    torch.testing.assert_close(scores, torch.tensor([[40.5, 69.0]]))


# Detections.


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_detections(scores, windows, settings):
    """One class after the other, one window after the other: stays if it overlaps none that stayed before."""
    found = []
    for label in range(scores.shape[1]):
        stayed = []
        for i in sorted(range(len(windows)), key=lambda i: -scores[i, label]):
            if scores[i, label] < settings.least_score or len(stayed) == settings.most:
                continue
            if all(overlap(windows[i], windows[j]) <= settings.suppression_overlap for j in stayed):
                stayed.append(i)
        found += [(float(scores[i, label]), label, i) for i in stayed]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "settings",
    [ALL, SuppressionSettings(least_score=0.0, suppression_overlap=0.5), SuppressionSettings(least_score=-1, most=2)],
)
def test_detections_are_those_of_a_slow_suppression(seed, settings):
    windows = made_boxes(61, seed)
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=(61, 3)).astype(np.float32))
    detections, window = detect(scores, windows, settings)
    expected = slow_detections(scores.numpy(), windows.tolist(), settings)
    assert list(zip(detections.scores.tolist(), detections.labels.tolist(), window.tolist(), strict=True)) == expected
    assert torch.equal(detections.boxes, windows[window])


def test_no_windows_and_low_scores_are_no_detections():
    for scores, windows in ((torch.zeros(0, 2), torch.zeros(0, 4)), (torch.full((5, 2), -9.0), made_boxes(5))):
        detections, window = detect(scores, windows, SuppressionSettings())
        assert detections.boxes.shape == (0, 4)
        assert len(detections.labels) == len(detections.scores) == len(window) == 0


def shifted_right(pixels_of_width_10):
    """A regressor that moves windows right, whatever their features."""
    return BoxRegressor(torch.zeros(3, 4), torch.tensor([pixels_of_width_10 / 10, 0, 0, 0]))


def test_boxes_are_moved_by_the_regressor_of_their_class_and_clipped_to_the_image():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10], [20, 20, 30, 30]])
    before = DetectedBoxes(boxes, torch.tensor([0, 0, 1]), torch.tensor([3.0, 2, 1]))
    after = with_moved_boxes(
        before, torch.zeros(3, 3), BoxRegressors((shifted_right(5), None), 1.0), (40, 62), SuppressionSettings()
    )
    assert after.boxes.tolist() == [[5, 0, 15, 10], [55, 0, 62, 10], [20, 20, 30, 30]]
    assert after.labels.tolist() == [0, 0, 1]


def test_boxes_that_meet_after_they_were_moved_are_suppressed_again():
    boxes = torch.tensor([[0.0, 0, 10, 10], [12, 0, 22, 10]])
    before = DetectedBoxes(boxes, torch.tensor([0, 0]), torch.tensor([1.0, 2]))
    pooled = torch.tensor([[1.2, 0, 0], [0, 0, 0]])
    regressor = BoxRegressor(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), torch.zeros(4))
    after = with_moved_boxes(before, pooled, BoxRegressors((regressor,), 1.0), (40, 40), SuppressionSettings())
    assert after.boxes.tolist() == [[12, 0, 22, 10]]
    assert after.scores.tolist() == [2]


def test_a_box_that_would_leave_the_image_stays_where_it_was():
    before = DetectedBoxes(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]), torch.tensor([1.0]))
    after = with_moved_boxes(before, torch.zeros(1, 3), BoxRegressors((shifted_right(500),), 1.0), (40, 40), ALL)
    assert after.boxes.tolist() == [[0, 0, 10, 10]]


# Its file.


def made_detector(network, regressors=True):
    random = torch.Generator().manual_seed(0)
    length = network.fc6.in_features
    one = BoxRegressor(torch.randn(length, 4, generator=random), torch.randn(4, generator=random))
    return Detector(
        network=network,
        classes=("cat", "dog"),
        svms=LinearSvms("fc7", torch.randn(13, 2, generator=random), torch.randn(2, generator=random), 3.5),
        regressors=BoxRegressors((one, None), 0.25) if regressors else None,
        rules=WindowRules(scales=(688, 480), context=1.25),
        aligned=True,
        warped=True,
        test=SuppressionSettings(most=7),
        proposals={"proposer": "dense", "windows": 2000, "most": 2000, "seed": 1},
    )


@pytest.mark.parametrize("regressors", [True, False])
def test_a_saved_detector_is_loaded_with_equal_values(network, tmp_path, regressors):
    detector = made_detector(network, regressors)
    save_detector(detector, tmp_path / "detector.ckpt")
    loaded = load_detector(tmp_path / "detector.ckpt")
    assert torch.equal(loaded.svms.weights, detector.svms.weights)
    assert torch.equal(loaded.svms.biases, detector.svms.biases)
    assert (loaded.svms.layer, loaded.svms.factor) == ("fc7", 3.5)
    for name in ("classes", "rules", "aligned", "warped", "test", "proposals"):
        assert getattr(loaded, name) == getattr(detector, name)
    if regressors:
        assert torch.equal(loaded.regressors.of_class[0].weights, detector.regressors.of_class[0].weights)
        assert loaded.regressors.of_class[1] is None
        assert loaded.regressors.factor == 0.25
    else:
        assert loaded.regressors is None
    assert torch.equal(loaded.network.fc6.weight, network.fc6.weight)
    assert torch.equal(load_network(tmp_path / "detector.ckpt").fc6.weight, network.fc6.weight)


def test_files_without_a_detector_are_refused_with_their_name(network, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"detector\.ckpt: no such"):
        load_detector(tmp_path / "detector.ckpt")
    save_network(network, tmp_path / "network.ckpt")
    with pytest.raises(ValueError, match=r"network\.ckpt: not a detector of sppnet"):
        load_detector(tmp_path / "network.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer", "fc9"),
        ("weights", torch.zeros(13, 3)),
        ("weights", torch.full((13, 2), torch.nan)),
        ("biases", torch.zeros(2, dtype=torch.float64)),
        ("regressors", [None]),
        ("test", {"most": 0}),
        ("rules", {"scales": "large"}),
        ("proposals", {"proposer": "dense", "most": 0, "seed": 0}),
        ("proposals", {"proposer": "dense", "most": 2000}),
    ],
)
def test_a_damaged_detector_is_refused(network, tmp_path, key, value):
    path = tmp_path / "detector.ckpt"
    save_detector(made_detector(network), path)
    content = torch.load(path, weights_only=True)
    content["detector"][key] = value
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"detector\.ckpt: not a detector of sppnet \(.+\)"):
        load_detector(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"suppression_overlap": 1.1}, "test.suppression_overlap=1.1: must be from 0 to 1"), ({"most": 0}, "test.most=0")],
)
def test_settings_out_of_range_are_refused_with_their_key(wrong, message):
    with pytest.raises(ValueError, match=message):
        SuppressionSettings(**wrong)
