"""Greying: squares pixel by pixel, and a network of which is known what it looks at."""

import math

import numpy as np
import pytest
import torch

from conftest import PngImages, random_images
from sppnet.backbones import build_backbone
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware
from sppnet.use.greying import grey_and_compare, greyed
from sppnet.use.network_views import NetworkView
from test_network_views import small_network

CPU = Hardware(accelerator="cpu", precision="float32", workers=0)
SIZE, PATCH, SQUARE = (180, 230), 12, 64


@pytest.mark.parametrize("center", [(0, 0), (20, 11), (29, 39.0), (-9, 12.5), (60, 60)])
@pytest.mark.parametrize("side", [1, 2, 7, 100])
def test_a_square_is_greyed(center, side):
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    result = greyed(image, np.array(center, float), side, (10.4, 20.6, 30))
    x0, y0 = (math.floor(place - (side - 1) / 2 + 0.5) for place in center)
    for y in range(40):
        for x in range(30):
            inside = x0 <= x < x0 + side and y0 <= y < y0 + side
            assert result[:, y, x].tolist() == ([10, 21, 30] if inside else image[:, y, x].tolist()), (x, y)


def red_detector():
    """A network whose log odds of "red" are 8 * the reddest pixel it samples - 4: every eighth one along each side."""
    network = SPPNet(
        build_backbone("zf5", width=0.02, normalization="none"),
        (1,),
        2,
        hidden=4,
        input_mean=(0, 0, 0),
        input_std=(255, 255, 255),
        classes=("other", "red"),
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for layer in network.backbone:
            if isinstance(layer, torch.nn.Conv2d):
                middle = layer.kernel_size[0] // 2
                layer.weight[0, 0, middle, middle] = 1
        network.backbone.conv1.weight[0, 1, 3, 3] = -1  # white is not red
        network.fc6.weight[0, 0] = network.fc7.weight[0, 0] = 1
        network.fc8.weight[1, 0], network.fc8.bias[1] = 8, -4
    return network


def images_with_a_red_patch(count=30):
    random, images = np.random.default_rng(0), []
    for _ in range(count):
        pixels = np.full((*SIZE, 3), 180, np.uint8)
        y, x = (random.integers(20, side - 20 - PATCH) for side in SIZE)
        pixels[y : y + PATCH, x : x + PATCH] = (255, 0, 0)
        images.append(pixels)
    return PngImages(images)


def sigmoid(odds):
    return 1 / (1 + math.exp(-odds))


def test_greying_finds_what_the_network_looks_at():
    network, images = red_detector(), images_with_a_red_patch()
    view = NetworkView.of(network, min(SIZE))
    greying = grey_and_compare(network, images, view, count=30, side=SQUARE, hardware=CPU)
    np.testing.assert_allclose(greying.strongest, sigmoid(4) - sigmoid(-4), atol=1e-5)
    lost = np.isclose(greying.random, sigmoid(4) - sigmoid(-4), atol=1e-5)
    kept = np.isclose(greying.random, 0, atol=1e-5)
    assert (lost | kept).all()
    assert 0 < lost.sum() < 12  # the squares take a tenth of an image


def test_a_check_depends_on_the_seed_only():
    network, images = small_network(), random_images([(70, 93), (93, 70), (64, 64), (33, 47), (1, 1)])
    view = NetworkView.of(network, 64)

    def drops(**settings):
        return np.stack(grey_and_compare(network, images, view, hardware=CPU, side=20, **settings))

    np.testing.assert_array_equal(drops(count=5), drops(count=5))
    np.testing.assert_array_equal(drops(count=5)[:, :3], drops(count=3))
    assert drops(count=99).shape == (2, 5)  # all images there are
    assert (drops(count=5) != drops(count=5, seed=1)).any()


def test_random_places_differ_between_images():
    network, (pixels,) = small_network(), random_images([(64, 64)]).pixels
    view = NetworkView.of(network, 64)
    greying = grey_and_compare(network, PngImages([pixels] * 5), view, count=5, side=20, hardware=CPU)
    assert len(set(greying.strongest.round(9))) == 1
    assert len(set(greying.random.round(9))) > 1


def test_an_image_whose_scores_are_not_finite_is_named():
    network = small_network()
    torch.nn.init.constant_(network.fc8.bias, float("nan"))
    with pytest.raises(ValueError, match=r"^\d\.png: the scores of the network are not finite"):
        grey_and_compare(network, random_images(), NetworkView.of(network, 64), count=2, hardware=CPU)
