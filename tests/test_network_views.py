"""What a network sees of an image, and where the cells of its maps lie, against counting one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.backbones import build_backbone
from sppnet.geometry import cell_window, first_center
from sppnet.network import SPPNet
from sppnet.use.network_views import MapCells, NetworkView, network_input


def small_network(name="zf5", levels=(3, 2, 1), **options):
    torch.manual_seed(0)
    return SPPNet(build_backbone(name, width=0.05), levels, 3, hidden=8, initialization="fan_in", **options).eval()


@pytest.mark.parametrize("size", [(70, 93), (93, 70), (1, 1), (3, 700)])
def test_a_network_with_a_pyramid_sees_the_whole_image(size):
    view = NetworkView.of(small_network(), 64)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    shown = view.image(image)
    assert min(shown.shape[1:]) == 64
    (pixels,) = view(image)
    assert torch.equal(pixels.permute(2, 0, 1), shown)
    assert str(view) == "whole images at shorter side 64"


def test_a_network_without_a_pyramid_sees_the_central_square():
    view = NetworkView.of(small_network(levels=None, input_side=48), 64)
    image = torch.arange(3 * 64 * 90).remainder(251).to(torch.uint8).view(3, 64, 90)
    assert torch.equal(view.image(image), image[:, 8:56, 21:69])
    assert str(view) == "the central 48 x 48 pixels of whole images at shorter side 64"


def test_scales_that_a_network_does_not_take_are_refused():
    for network, scale, smallest in ((small_network(), 30, 31), (small_network(levels=None, input_side=48), 47, 48)):
        with pytest.raises(ValueError, match=f"^scale={scale}: must be from {smallest} to 4096 pixels"):
            NetworkView.of(network, scale)


def test_network_input_is_on_the_scale_of_the_network():
    network = small_network(input_mean=(1, 2, 3), input_std=(2, 2, 4))
    pixels = torch.tensor([5, 6, 7], dtype=torch.uint8).view(1, 3, 1, 1)
    assert network_input(network, pixels).flatten().tolist() == [2, 2, 1]


@pytest.mark.parametrize("name", ["zf5", "overfeat7"])
def test_windows_and_centres_of_cells_are_those_of_the_geometry(name):
    network = small_network(name)
    places = np.array([[0, 0], [3, 0], [2, 7]])
    for layer in network.backbone.layers:
        cells, layers = MapCells.of(network, layer), network.backbone.footprints_to(layer)
        assert cells.windows(places).tolist() == [list(cell_window(tuple(place), layers)) for place in places.tolist()]
        expected = [[first_center(layers) + cells.stride * at for at in place] for place in places.tolist()]
        assert cells.centers(places).tolist() == expected
        assert cells.is_receptive_field


def test_of_a_timm_model_the_square_around_the_centre_is_known():
    backbone = build_backbone("timm", name="resnet10t")
    cells = MapCells.of(SPPNet(backbone, (2, 1), 3, hidden=8), "conv5")
    assert (cells.stride, cells.center, cells.side, cells.is_receptive_field) == (32, 15.5, 32, False)
    assert cells.windows(np.array([[1, 2]])).tolist() == [[32, 64, 64, 96]]


def test_layers_without_maps_are_refused_and_those_with_maps_named():
    for layer, words in (("fc6", "has no maps"), ("pool5", "has no maps"), ("conv9", "no such layer")):
        with pytest.raises(ValueError, match=f"^layer={layer}: {words}; the layers with maps are conv1, norm1, "):
            MapCells.of(small_network(), layer)


def value_at(values, place, cells):
    """Interpolates a list at the cell coordinate of a pixel."""
    at = min(max((place - cells.center) / cells.stride, 0), len(values) - 1)
    low = math.floor(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


@given(st.sampled_from([(1, 1), (1, 3), (4, 2), (5, 5)]), st.sampled_from(["conv1", "pool2", "conv5"]))
def test_a_map_is_enlarged_so_that_cells_lie_where_they_are_centred(size, layer):
    cells = MapCells.of(NETWORK, layer)
    values = torch.rand(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    height, width = 37, 50
    enlarged = cells.enlarged(values, height, width)
    columns = [[value_at(values[:, x].tolist(), y, cells) for x in range(size[1])] for y in range(height)]
    expected = torch.tensor([[value_at(row, x, cells) for x in range(width)] for row in columns])
    torch.testing.assert_close(enlarged.float(), expected)


NETWORK = small_network()
