"""Training the SVMs of a detector on images and their mirror images."""

import dataclasses

import numpy as np
import pytest
import torch

from sppnet.backbones import build_backbone
from sppnet.data.images import decode_image
from sppnet.data.scenes import Scenes
from sppnet.detect.map_files import compute_maps
from sppnet.detect.maps import WindowRules
from sppnet.detect.mining import NegativeMiner, SvmSettings
from sppnet.detect.proposal_files import compute_proposals
from sppnet.detect.proposals import Dense
from sppnet.detect.rcnn import warped_features
from sppnet.detect.training import train_svms
from sppnet.detect.windows import WindowsOfImages
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, images = tmp_path_factory.mktemp("cache"), Scenes("train", 3)
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.1, normalization="none")
    network = SPPNet(backbone, (2, 1), 3, hidden=8, initialization="fan_in", input_std=(58.0,) * 3).eval()
    proposals = compute_proposals(images, Dense(windows=13), folder / "proposals", workers=0, most=13)
    hardware = Hardware(accelerator="cpu", precision="float32", workers=0)
    maps = compute_maps(network, images, (96, 144), folder / "maps", mirrored=True, hardware=hardware)
    return WindowsOfImages(images, proposals, maps, network, WindowRules(scales=(96, 144)))


def as_pooled(pooled):
    return pooled


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("sides", [(False,), (False, True)])
def test_svms_are_trained_on_images_and_if_asked_on_their_mirror_images(data, tmp_path, warped, sides):
    used = dataclasses.replace(data, warped=warped)
    settings = SvmSettings(train_after=10, mirrored=True in sides)
    (svms,) = train_svms(used, data.network, ["pool5"], settings, tmp_path, autocast=None, seed=0)

    def rows(index, windows, mirrored):
        return (svms.factor * used.features(index, windows, as_pooled, mirrored=mirrored)).half().numpy()

    positives = [[] for _ in data.classes]
    for index in range(len(data)):
        objects = data.objects(index)
        for side in sides:
            for label, row in zip(objects.labels, rows(index, objects.boxes, side), strict=True):
                positives[label].append(row)
    length = data.network.fc6.in_features
    miner = NegativeMiner([np.array(of_class, np.float16).reshape(-1, length) for of_class in positives], settings)
    for index in range(len(data)):
        windows = data.windows(index)
        for side in sides:
            miner.add(rows(index, windows, side), data.is_negative(index, windows, settings.negative_overlap))
    miner.finish()
    assert np.array_equal(svms.weights, miner.weights)
    assert np.array_equal(svms.biases, miner.biases)


def test_warped_windows_of_a_mirror_image_are_cut_out_of_it(data):
    warped = data.warped_one_by_one()
    image = decode_image(data.images.read(1), "image").flip(-1)
    windows = data.windows(1)[:7]
    boxes = windows.copy()
    boxes[:, 0], boxes[:, 2] = image.shape[2] - windows[:, 2], image.shape[2] - windows[:, 0]
    expected = warped_features(data.network, image, boxes, as_pooled)
    assert torch.equal(warped.features(1, windows, as_pooled, mirrored=True), expected)
    assert not torch.allclose(warped.features(1, windows, as_pooled), expected)
