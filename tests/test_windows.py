"""Windows of images pooled from maps, against a loop that cuts every window out of the map by itself."""

import numpy as np
import pytest
import torch

from references import mirrored_window
from sppnet import windows as windows_module
from sppnet.backbones import build_backbone
from sppnet.geometry import crop_to_cells, window_to_cells
from sppnet.network import SPPNet
from sppnet.windows import mirrored_windows, pool_image_windows

CROPS = np.array([(0, 0, 64, 64), (33, 7, 97, 71), (109, 67, 173, 131), (33, 7, 97, 71), (34, 8, 98, 72)])
WINDOWS = np.concatenate([CROPS, [(0.5, 0.25, 172.75, 130), (5, 5, 5, 5), (0, 0, 173, 131)]])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SPPNet(build_backbone("zf5", width=0.05), levels=[3, 2, 1], num_classes=4, hidden=8).eval()


@pytest.fixture(scope="module")
def maps(network):
    """(2, C, 7, 10), of two images of 131 x 173 pixels."""
    images = torch.randn(2, 3, 131, 173, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.maps(images)


def cut_outs(network, maps, windows, crop_side):
    """(N, K, C * B): the pyramid of every window, cut out."""
    stride, offset, size = network.backbone.stride, network.backbone.offset, tuple(maps.shape[2:])
    rows = []
    for window in map(tuple, windows.tolist()):
        if crop_side is None:
            x0, y0, x1, y1 = window_to_cells(window, stride, offset, size)
        else:
            crop_size = tuple(network.maps(torch.zeros(1, 3, crop_side, crop_side)).shape[2:])
            x0, y0, x1, y1 = crop_to_cells(window, stride, crop_size, size)
        rows.append(network.pyramid(maps[:, :, y0:y1, x0:x1]))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("windows", "crop_side"), [(WINDOWS, None), (CROPS, 64)], ids=["inside", "crops"])
@pytest.mark.parametrize("chunk", [1, 2000, 1 << 25])
def test_windows_are_pooled_as_if_they_were_cut_out(network, maps, windows, crop_side, chunk, monkeypatch):
    monkeypatch.setattr(windows_module, "MAX_POOLED_NUMBERS", chunk)
    pooled = pool_image_windows(network, maps, windows, lambda vectors: 2 * vectors, crop_side=crop_side)
    assert torch.equal(pooled, 2 * cut_outs(network, maps, windows, crop_side))


def test_chunks_are_no_larger_than_allowed_and_equal_cells_are_pooled_once(network, maps, monkeypatch):
    length = network.fc6.in_features
    monkeypatch.setattr(windows_module, "MAX_POOLED_NUMBERS", 3 * length)
    sizes = []

    def head(vectors):
        sizes.append(len(vectors))
        return vectors[:, :1]

    pool_image_windows(network, maps, CROPS, head, crop_side=64)
    # Windows 1, 3 and 4 have the same cells: four different ones on each of two maps.
    assert sizes == [3, 3, 2]


def test_windows_that_are_inside_out_are_named(network, maps):
    with pytest.raises(ValueError, match=r"window=\(9\.0, 0\.0, 5\.0, 5\.0\)"):
        pool_image_windows(network, maps, np.array([(0, 0, 5, 5), (9, 0, 5, 5)]), lambda vectors: vectors)


def test_mirrored_windows_hold_the_mirrored_pixels():
    windows = [(1, 2, 5, 6), (0, 0, 11, 7), (10, 3, 11, 4)]
    image = torch.arange(7 * 11).reshape(7, 11)
    mirrored = mirrored_windows(np.array(windows), 11)
    for (x0, y0, x1, y1), (a, b, c, d) in zip(windows, mirrored.tolist(), strict=True):
        assert (a, b, c, d) == mirrored_window((x0, y0, x1, y1), 11)
        assert torch.equal(image.flip(-1)[b:d, a:c], image[y0:y1, x0:x1].flip(-1))
    assert np.array_equal(mirrored_windows(mirrored, 11), windows)
