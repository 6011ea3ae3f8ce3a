"""Detecting in one image: what a test of the detector finds in it, other windows, wrong images."""

import dataclasses

import numpy as np
import pytest
import torch

from conftest import random_images
from sppnet.backbones import build_backbone
from sppnet.data.images import decode_image
from sppnet.detect.detector import (
    BoxRegressors,
    Detector,
    LinearSvms,
    detect_image,
    load_detector,
    proposed_windows,
    save_detector,
)
from sppnet.detect.map_files import compute_maps
from sppnet.detect.maps import WindowRules
from sppnet.detect.proposal_files import compute_proposals
from sppnet.detect.proposals import Dense, saved_proposer
from sppnet.detect.regression import BoxRegressor
from sppnet.detect.suppression import SuppressionSettings
from sppnet.detect.testing import DetectorRow, detect_by_rows
from sppnet.detect.windows import WindowsOfImages
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware

IMAGES = random_images([(70, 93), (93, 71), (40, 460), (64, 64), (1, 1), (7, 300)])
PROPOSER = Dense(windows=90)
RULES = WindowRules(scales=(96, 144), context=1.25)
TEST = SuppressionSettings(least_score=0.1, suppression_overlap=0.4, most=7)


def made_detector(layer="fc7", *, regressed=True, **changes):
    """A detector of random weights; every setting differs from its default."""
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.1, normalization="none")
    network = SPPNet(backbone, (3, 1), 4, hidden=16, initialization="fan_in", input_std=(58.0,) * 3).eval()
    pooled, length = network.fc6.in_features, {"pool5": network.fc6.in_features}.get(layer, 16)
    regressors = [BoxRegressor(torch.randn(pooled, 4) / pooled, torch.randn(4) / 9) for _ in "ab"]
    detector = Detector(
        network=network,
        classes=("a", "b", "c"),
        svms=LinearSvms(layer, torch.randn(length, 3), torch.randn(3), 0.5),
        regressors=BoxRegressors((*regressors, None), 0.25) if regressed else None,
        rules=RULES,
        aligned=True,
        warped=False,
        test=TEST,
        proposals={**PROPOSER.settings(), "most": 60, "seed": 3},
    )
    return dataclasses.replace(detector, **changes)


@pytest.fixture(scope="module")
def detector():
    return made_detector()


def image(index=0):
    return decode_image(IMAGES.read(index), IMAGES.name(index))


def found_in_tests(detectors, folder, autocast):
    """The detections of detectors with one network by the code that tests them, with proposals and maps on disk."""
    network = detectors[0].network.aligned().eval()
    precision = "bf16" if autocast else "float32"
    proposals = compute_proposals(IMAGES, PROPOSER, folder / "proposals", workers=0, seed=3, most=60)
    hardware = Hardware(accelerator="cpu", precision=precision)
    maps = compute_maps(network, IMAGES, RULES.scales, folder / "maps", hardware=hardware)
    rows = [DetectorRow(str(i), network, one.svms, one.regressors, one.warped) for i, one in enumerate(detectors)]
    data = WindowsOfImages(IMAGES, proposals, maps, network, RULES, autocast=autocast)
    return detect_by_rows(data, rows, TEST, folder / "found", about={}, autocast=autocast)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_the_boxes_are_those_that_a_test_finds_bit_for_bit(tmp_path, autocast):
    detectors = [made_detector("fc7"), made_detector("pool5"), made_detector("fc6", regressed=False)]
    detectors.append(made_detector("fc7", warped=True))
    for detector, found in zip(detectors, found_in_tests(detectors, tmp_path, autocast), strict=True):
        save_detector(detector, tmp_path / "detector.ckpt")
        loaded = load_detector(tmp_path / "detector.ckpt")
        for i, expected in enumerate(found):
            boxes, labels, scores = detect_image(loaded, image(i), name=IMAGES.name(i), autocast=autocast)
            np.testing.assert_array_equal(labels, expected.labels)
            np.testing.assert_array_equal(scores, expected.scores)
            np.testing.assert_array_equal(boxes, expected.boxes)
        assert len(found) > 12


def test_windows_are_chosen_by_the_name_of_the_image(detector):
    chosen = proposed_windows(detector, image(), "0.png")
    assert chosen.dtype == np.int64
    assert len(chosen) == 60 < len(PROPOSER(image()))
    assert {*map(tuple, chosen.tolist())} < {*map(tuple, PROPOSER(image()).tolist())}
    assert chosen.tolist() != proposed_windows(detector, image(), "1.png").tolist()


def test_where_no_windows_are_left_out_the_name_changes_nothing():
    detector = made_detector(proposals={**PROPOSER.settings(), "most": 90, "seed": 3})
    first, second = (detect_image(detector, image(2), name=name) for name in ("0.png", "1.png"))
    assert len(first.labels) > 4
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_own_windows_take_the_place_of_the_proposals():
    fixed = made_detector(regressed=False, test=SuppressionSettings(least_score=-1e9))
    windows = np.array([[3.5, 2.25, 40, 60], [50, 10, 80, 41]])
    found = detect_image(fixed, image(), windows=windows)
    assert {tuple(box) for box in found.boxes.tolist()} == {tuple(window) for window in windows.tolist()}
    assert len(found.boxes) == len(fixed.classes) * len(windows)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_no_windows_give_no_boxes(detector):
    found = detect_image(detector, image(), windows=np.empty((0, 4)))
    assert found.boxes.shape == (0, 4)
    assert len(found.labels) == len(found.scores) == 0


@pytest.mark.parametrize("wrong", [image().float(), image()[None], image()[:1], image()[:, :0]])
def test_tensors_that_are_no_images_are_refused_with_their_name(detector, wrong):
    with pytest.raises(ValueError, match=r"^me\\n: torch\.\w+ of shape \(.*\), must be uint8 \(3, h, w\)$"):
        detect_image(detector, wrong, name="me\n")


@pytest.mark.parametrize("wrong", [np.zeros((1, 5)), np.array([[9, 9, 3, 12]]), np.full((1, 4), np.nan)])
def test_windows_that_are_none_are_refused(detector, wrong):
    with pytest.raises(ValueError, match="window"):
        detect_image(detector, image(), windows=wrong)


def test_windows_from_a_file_are_for_the_images_of_that_file_only():
    of_file = made_detector(proposals={"proposer": "file", "sha256": "0", "most": 9, "seed": 0})
    with pytest.raises(ValueError, match=r"^proposals: the detector's windows came from a file, which has none for"):
        detect_image(of_file, image())
    assert len(detect_image(of_file, image(), windows=np.array([[0, 0, 50, 50]])).boxes)


def test_a_proposer_is_built_from_its_settings():
    assert saved_proposer(PROPOSER.settings()) == PROPOSER


@pytest.mark.parametrize("settings", [{}, {"proposer": "guess"}, {"proposer": "dense", "edges": 3}])
def test_other_settings_are_refused(settings):
    with pytest.raises(ValueError, match="not the settings of a proposer"):
        saved_proposer(settings)
