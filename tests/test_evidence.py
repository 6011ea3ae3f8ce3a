"""What speaks for a class: against gradients by differences, and cells found bin by bin."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from sppnet.backbones import build_backbone
from sppnet.geometry import pyramid_bins
from sppnet.network import SPPNet
from sppnet.use.evidence import class_evidence, predicted_class, strongest_cells
from sppnet.use.network_views import MapCells, network_input
from test_network_views import small_network


def random_image(*size):
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(sum(size)), dtype=torch.uint8)


def evidence_by_differences(network, image, target, against):
    """(by level, by cell): every bin's value times the slope of the score along it, laid on the bin's first maximum."""
    network = network.double()
    with torch.no_grad():
        maps = network.backbone(network_input(network, image[None]).double())
        pooled = network.pool(maps)

        def score(vector):
            scores = network.classify(vector[None])[0].softmax(dim=0)
            rest = 1 - scores[target] if against is None else scores[against]
            return float((scores[target] / rest).log())

        slopes = []
        for i in range(pooled.shape[1]):
            step = torch.zeros_like(pooled[0])
            step[i] = 1e-6
            slopes.append((score(pooled[0] + step) - score(pooled[0] - step)) / 2e-6)
    products = iter((pooled[0] * torch.tensor(slopes)).tolist())

    by_level, by_cell = [], np.zeros(maps.shape[2:])
    for n in network.pyramid.levels:
        by_level.append(0.0)
        for channel in maps[0]:
            for top, bottom in pyramid_bins(maps.shape[2], n):
                for left, right in pyramid_bins(maps.shape[3], n):
                    values = channel[top:bottom, left:right]
                    y, x = divmod(int(values.argmax()), right - left)
                    product = next(products)
                    by_level[-1] += product
                    by_cell[top + y, left + x] += product
    return by_level, by_cell


@pytest.mark.parametrize("against", [None, 0])
@pytest.mark.parametrize("size", [(64, 64), (70, 150), (31, 31), (93, 47)])
def test_evidence_is_value_times_slope_of_every_bin_at_the_cell_it_comes_from(size, against):
    network, image = small_network(levels=(3, 2, 1)), random_image(*size)
    evidence = class_evidence(network, image, 2, against)
    by_level, by_cell = evidence_by_differences(network, image, 2, against)
    np.testing.assert_allclose(evidence.by_level, by_level, atol=1e-5)
    np.testing.assert_allclose(evidence.by_cell, by_cell, atol=1e-5)


@pytest.mark.parametrize("name", ["zf5", "overfeat5"])
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (1, 4), None])
@pytest.mark.parametrize("size", [(64, 64), (65, 130), (131, 67)])
def test_sums_over_levels_and_over_cells_are_equal(name, levels, size):
    size = size if levels else (64, 64)
    network = small_network(name, levels, input_side=None if levels else 64)
    evidence = class_evidence(network, random_image(*size), 1)
    assert len(evidence.by_level) == len(network.pyramid.levels)
    assert evidence.by_cell.sum() == pytest.approx(evidence.total, abs=1e-5)
    assert evidence.total == pytest.approx(sum(evidence.by_level))


def test_the_score_is_the_log_odds_or_the_difference_of_logits():
    network, image = small_network(), random_image(70, 93)
    with torch.no_grad():
        logits = network(network_input(network, image[None]))[0]
    p = logits.double().softmax(dim=0).tolist()
    for target in range(3):
        evidence = class_evidence(network, image, target)
        assert evidence.score == pytest.approx(math.log(p[target] / (1 - p[target])), rel=1e-5)
        np.testing.assert_allclose(evidence.probabilities, p, rtol=1e-5)
    assert class_evidence(network, image, 0, 2).score == pytest.approx(float(logits[0] - logits[2]), rel=1e-5)
    assert predicted_class(network, image) == int(logits.argmax())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_has_no_evidence_is_refused():
    image = random_image(64, 64)
    one = SPPNet(build_backbone("zf5", width=0.05), (1,), 1, hidden=8).eval()
    with pytest.raises(ValueError, match=r"^the network has one class, whose probability is always 1$"):
        class_evidence(one, image, 0)
    with pytest.raises(ValueError, match=r"^the class that is explained must be another than the one it is compared"):
        class_evidence(small_network(), image, 1, 1)
    damaged = small_network()
    torch.nn.init.constant_(damaged.fc7.bias, float("nan"))
    with pytest.raises(ValueError, match=r"^the scores of the network are not finite for this image"):
        class_evidence(damaged, image, 1)


def greedily_strongest(by_cell, cells, most):
    """Takes the strongest cells one after the other unless they overlap too much with one that was taken."""
    order = sorted(np.ndindex(by_cell.shape), key=lambda place: -by_cell[place])
    taken = []
    for y, x in order:
        window = torch.from_numpy(cells.windows(np.array([[x, y]]))).float()
        others = torch.from_numpy(cells.windows(np.array(taken).reshape(-1, 2))).float()
        if by_cell[y, x] > 0 and (box_iou(window, others) <= 0.5).all() and len(taken) < most:
            taken.append((x, y))
    return np.array(taken).reshape(-1, 2)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (30, 2)])
@pytest.mark.parametrize("layer", ["conv1", "conv5"])
def test_the_strongest_windows_overlap_little(size, layer):
    cells = MapCells.of(small_network(), layer)
    by_cell = np.random.default_rng(0).normal(size=size).astype(np.float32)
    by_cell.flat[0] = 5
    found = strongest_cells(by_cell, cells)
    np.testing.assert_array_equal(found, greedily_strongest(by_cell, cells, 3))
    assert found[0].tolist() == [0, 0]


def test_where_nothing_speaks_for_a_class_there_are_no_windows():
    cells = MapCells.of(small_network(), "conv5")
    assert strongest_cells(np.array([[0, -1], [-2, -0.5]], np.float32), cells).shape == (0, 2)
