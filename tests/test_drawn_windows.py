"""Windows drawn for fine-tuning: from their maps on disk, and kept in memory."""

import numpy as np
import pytest
import torch

from sppnet.backbones import build_backbone
from sppnet.data.scenes import Scenes
from sppnet.detect.map_files import compute_maps
from sppnet.detect.maps import WindowRules
from sppnet.detect.proposal_files import compute_proposals
from sppnet.detect.proposals import Dense
from sppnet.detect.windows import DrawnWindows, WindowsOfImages
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware

CPU = Hardware(accelerator="cpu", precision="float32", workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, images = tmp_path_factory.mktemp("cache"), Scenes("train", 3)
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.1, normalization="none")
    network = SPPNet(backbone, (3, 2, 1), 3, hidden=8, initialization="fan_in").eval()
    proposals = compute_proposals(images, Dense(windows=61), folder / "proposals", workers=0, most=61)
    maps = compute_maps(network, images, (96, 144), folder / "maps", mirrored=True, hardware=CPU)
    return WindowsOfImages(images, proposals, maps, network, WindowRules(scales=(96, 144)))


def drawn_at_random(data, n=40):
    random = np.random.default_rng(0)
    images = random.integers(len(data), size=n)
    counts = np.array([len(data.windows(i)) + len(data.objects(i)) for i in range(len(data))])
    return images, (random.random(n) * counts[images]).astype(int), random.random(n) < 0.5


def test_drawn_windows_are_the_windows_of_their_image_or_mirror_image(data):
    drawn = DrawnWindows(data)
    images, windows, mirrored = drawn_at_random(data)
    pooled = drawn(images, windows, mirrored)
    for row, image, window, flip in zip(pooled, images, windows, mirrored, strict=True):
        box = drawn.windows(image)[window][None]
        expected = data.features(int(image), box, lambda values: values, mirrored=bool(flip))
        torch.testing.assert_close(row[None], expected, rtol=0, atol=0)


def test_windows_kept_in_memory_are_the_same(data):
    images, windows, mirrored = drawn_at_random(data)
    from_disk, kept = DrawnWindows(data), DrawnWindows(data)
    kept.keep([np.unique(windows[images == image]) for image in range(len(data))], memory=10**9)
    data.maps.folder.rename(data.maps.folder.with_name("away"))  # nothing is read any more
    try:
        values = kept(images, windows, mirrored)
    finally:
        data.maps.folder.with_name("away").rename(data.maps.folder)
    assert torch.equal(values, from_disk(images, windows, mirrored))


def test_windows_that_do_not_fit_into_memory_are_read_from_disk(data):
    drawn = DrawnWindows(data)
    used = [np.arange(len(drawn.windows(image))) for image in range(len(data))]
    drawn.keep(used, memory=2 * data.network.fc6.in_features * 2 * sum(map(len, used)) - 1)
    assert torch.equal(drawn(*drawn_at_random(data)), DrawnWindows(data)(*drawn_at_random(data)))
    assert drawn._kept is None


def test_the_last_windows_of_an_image_are_its_objects(data):
    drawn = DrawnWindows(data)
    for image in range(len(data)):
        boxes = data.objects(image).boxes
        np.testing.assert_array_equal(drawn.windows(image)[-len(boxes) :], boxes)
