"""R-CNN's way: windows cut out, warped to a square, and passed through the whole network one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.data.batches import to_network_input
from sppnet.detect.rcnn import warped_features, warped_window
from sppnet.network import SPPNet

FILL = torch.tensor([10, 20, 30], dtype=torch.uint8)


def made_image(height=60, width=80, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def resized(part, height, width):
    return F.interpolate(part[None], (height, width), mode="bilinear", antialias=True)[0]


def test_without_context_it_is_the_window_resized_to_a_square():
    image = made_image()
    square = warped_window(image, np.array([10, 20, 51, 33]), FILL, side=24, context=0)
    assert torch.equal(square, resized(image[:, 20:33, 10:51], 24, 24))


def test_with_context_it_is_the_larger_window_around_it():
    """A window of 20 x 10 pixels fills 10 x 10 of 16 x 16: around it are 3 pixels, of 2 x 1 pixels of the image."""
    image = made_image()
    square = warped_window(image, np.array([30, 20, 50, 30]), FILL, side=16, context=3)
    assert torch.equal(square, resized(image[:, 17:33, 24:56], 16, 16))


def test_outside_the_image_it_has_the_colour_of_filling():
    image = made_image(10, 10)
    square = warped_window(image, np.array([0, 0, 10, 10]), FILL, side=16, context=3)
    assert torch.equal(square[:, 3:13, 3:13], image)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[3:13, 3:13] = False
    assert torch.equal(square[:, outside], FILL[:, None].expand(3, 16 * 16 - 100))


def test_at_one_border_only_that_side_is_filled():
    image = made_image(40, 40)
    square = warped_window(image, np.array([0, 15, 10, 25]), FILL, side=16, context=3)
    assert torch.equal(square[:, :, :3], FILL[:, None, None].expand(3, 16, 3))
    assert torch.equal(square[:, :, 3:], image[:, 12:28, 0:13])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_window_of_any_image_gives_a_square(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    square = warped_window(image, np.array([x0, y0, x1, y1]), FILL, side=48)
    assert square.shape == (3, 48, 48)
    is_image = (square == 200).all(dim=0)
    assert (is_image | (square == FILL[:, None, None]).all(dim=0)).all()
    assert is_image[17:31, 17:31].all()  # the window itself, but for rounding


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_features_are_those_of_the_whole_network_on_each_square(batch_size):
    torch.manual_seed(0)
    network = SPPNet("zf5", (2, 1), 3, hidden=7, initialization="fan_in", input_mean=(10, 20, 30)).eval()
    image, windows = made_image(), np.array([[0, 0, 80, 60], [3, 5, 40, 50], [70, 50, 80, 60], [0, 0, 1, 1]])
    features = warped_features(network, image, windows, network.classify, batch_size=batch_size, side=112)
    assert features.shape == (4, 3)
    for i, window in enumerate(windows):
        square = warped_window(image, window, FILL, side=112)
        with torch.no_grad():
            expected = network(to_network_input(square[None], (10, 20, 30), (1, 1, 1)))
        torch.testing.assert_close(features[i : i + 1], expected, rtol=1e-4, atol=1e-4)
