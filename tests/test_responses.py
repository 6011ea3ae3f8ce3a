"""The strongest responses of every filter, against looking at all maps at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_images
from sppnet.data.images import UnreadableImage, decode_image
from sppnet.runtime.hardware import Hardware
from sppnet.use.network_views import NetworkView, network_input
from sppnet.use.responses import StrongestResponses, find_strongest, response_maps
from test_network_views import small_network

CPU = Hardware(accelerator="cpu", precision="float32", workers=0)


def strongest_of_all(maps, most):
    """By filter, (value, image, (x, y)) of its strongest responses above 0, from the maps of all images at once."""
    found = []
    for filter_maps in zip(*maps, strict=True):
        responses = []
        for image, values in enumerate(filter_maps):
            cells = [(-float(values[y, x]), y, x) for y in range(values.shape[0]) for x in range(values.shape[1])]
            value, y, x = min(cells)
            responses += [(-value, image, (x, y))] * (value < 0)
        found.append(sorted(responses, key=lambda response: (-response[0], response[1]))[:most])
    return found


def as_lists(strongest):
    """The same of `StrongestResponses`."""
    columns = (strongest.values.tolist(), strongest.images.tolist(), strongest.cells.tolist())
    return [
        [(value, image, tuple(cell)) for value, image, cell in zip(*rows, strict=True) if value > -np.inf]
        for rows in zip(*columns, strict=True)
    ]


@given(st.data())
def test_responses_are_those_of_all_maps_whatever_the_order_and_the_groups(data):
    """Few different values, so that many are equal; sizes that differ."""
    count, most, filters = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4)), 3
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    sizes = data.draw(st.lists(st.sampled_from([(1, 1), (1, 3), (4, 2)]), min_size=count, max_size=count))
    maps = [torch.randint(-1, 3, (filters, *size), generator=random).float() for size in sizes]

    strongest = StrongestResponses(filters, most)
    for size in data.draw(st.permutations(sorted(set(sizes)))):
        group = data.draw(st.permutations([i for i in range(count) if sizes[i] == size]))
        for part in (group[:2], group[2:]):
            if part:
                strongest.add(part, torch.stack([maps[i] for i in part]))
    assert as_lists(strongest) == strongest_of_all(maps, most)


def test_filters_are_ordered_by_their_strongest_response_without_dead_ones():
    strongest = StrongestResponses(4, 2)
    strongest.add([0, 1], torch.tensor([[1.0, 0.0, 3.0, 1.0], [0.5, -1.0, 0.0, 0.0]])[:, :, None, None])
    assert strongest.strongest_filters(9) == [2, 0, 3]
    assert strongest.strongest_filters(2) == [2, 0]
    assert strongest.dead() == [1]


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv5"])
@pytest.mark.parametrize("levels", [(3, 2, 1), None])
def test_a_network_and_a_data_set(layer, levels):
    network = small_network(levels=levels, input_side=None if levels else 48)
    images = random_images([(70, 93), (93, 70), (70, 93), (40, 160), (1, 1), (70, 93)])
    view = NetworkView.of(network, 64)
    found = as_lists(find_strongest(network, images, layer, view, most=3, hardware=CPU))

    inputs = [view.image(decode_image(images.read(i), "")) for i in range(len(images))]
    with torch.no_grad():
        maps = [network.backbone.layer_outputs(network_input(network, x[None]), [layer])[layer][0] for x in inputs]
    expected = strongest_of_all(maps, 3)
    assert [[row[1:] for row in rows] for rows in found] == [[row[1:] for row in rows] for rows in expected]
    values = [[row[0] for rows in side for row in rows] for side in (found, expected)]
    np.testing.assert_allclose(*values, rtol=1e-5)
    torch.testing.assert_close(response_maps(network, inputs[0], layer, ""), maps[0])


def test_responses_that_are_not_finite_are_named():
    network = small_network()
    torch.nn.init.constant_(network.backbone.conv5.weight, float("inf"))
    view = NetworkView.of(network, 64)
    with pytest.raises(ValueError, match=r"^0\.png: conv5 is not finite for this image; the network is damaged$"):
        find_strongest(network, random_images(), "conv5", view, most=3, hardware=CPU)
    with pytest.raises(ValueError, match=r"^a\.jpg: conv5 is not finite"):
        response_maps(network, torch.zeros(3, 64, 64, dtype=torch.uint8), "conv5", "a.jpg")


def test_an_unreadable_image_of_a_data_set_is_named():
    images = random_images()
    images.read = lambda index: b"" if index == 3 else random_images().read(index)
    network = small_network()
    with pytest.raises(UnreadableImage, match=r"^3\.png: the file is empty; .*exclude=\[3\.png\]$"):
        find_strongest(network, images, "conv1", NetworkView.of(network, 64), most=3, hardware=CPU)
