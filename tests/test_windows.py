"""Windows of images pooled from maps, against a loop that cuts every window out of the map by itself."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from references import mirrored_window, pool_windows_by_cutting
from sppnet import windows as windows_module
from sppnet.backbones import build_backbone
from sppnet.geometry import crop_to_cells, window_to_cells
from sppnet.network import SPPNet
from sppnet.pyramid import pool_windows
from sppnet.windows import mirrored_windows, pool_by_bins, pool_image_windows, pool_many_windows

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


# Many windows of one map.

NUMBERS = [-torch.inf, -3.0, -0.5, 0.0, 0.25, 1.0, 2.0, 7.0, torch.inf]


def pooled_in_windows(maps, cells, levels):
    """`pool_windows` of the windows (K, 4) of one map."""
    return pool_windows(maps, torch.from_numpy(np.insert(cells, 0, 0, axis=1)), levels)


def every_window(height, width):
    """All windows of a map."""
    spans = [[(a, b) for a in range(side) for b in range(a + 1, side + 1)] for side in (width, height)]
    return np.array([(x0, y0, x1, y1) for x0, x1 in spans[0] for y0, y1 in spans[1]])


def random_map(height, width, channels=3, dtype=torch.float32, seed=0):
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def maps_and_cells(draw):
    """A map of any floating dtype and memory format, with infinities and perhaps NaN, and windows of it."""
    height, width, channels = draw(st.integers(1, 14)), draw(st.integers(1, 14)), draw(st.integers(1, 3))
    values = st.sampled_from([*NUMBERS, *[torch.nan] * draw(st.booleans())])
    flat = draw(st.lists(values, min_size=height * width * channels, max_size=height * width * channels))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    maps = torch.tensor(flat, dtype=dtype).view(1, channels, height, width)
    if draw(st.booleans()):
        maps = maps.to(memory_format=torch.channels_last)
    windows = every_window(height, width)
    rows = draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=20))
    return maps, windows[rows]


@given(
    maps_and_cells(),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.sampled_from([1, 100, 1 << 20]),
    st.sampled_from([1, 100, 1 << 20]),
)
def test_many_windows_are_pooled_as_one_by_one(drawn, levels, chunk, cached):
    maps, cells = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_module, "MAX_POOLED_NUMBERS", chunk)
        patch.setattr(windows_module, "_NUMBERS_OF_MAXIMA", cached)
        patch.setattr(windows_module, "_NUMBERS_OF_LEVELS", cached)
        pooled = pool_by_bins(maps, cells, levels)
    assert pooled.dtype == maps.dtype
    assert torch.equal(pooled.nan_to_num(99), pooled_in_windows(maps, cells, levels).nan_to_num(99))
    rows = torch.from_numpy(np.insert(cells, 0, 0, axis=1))
    assert torch.equal(pooled.nan_to_num(99), pool_windows_by_cutting(maps, rows, levels).nan_to_num(99))


@pytest.mark.parametrize("size", [(13, 10), (7, 11), (1, 13), (11, 1), (1, 1)])
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (1, 2, 3, 6), (4, 3, 2, 1), (7, 5), (6, 6, 4, 1), (1,)])
def test_every_window_of_a_map(size, levels):
    maps, cells = random_map(*size), every_window(*size)
    assert torch.equal(pool_by_bins(maps, cells, levels), pooled_in_windows(maps, cells, levels))


def test_few_windows_are_pooled_by_pool_windows(monkeypatch):
    calls = []
    monkeypatch.setattr(windows_module, "pool_windows", lambda *arguments: calls.append(1) or pool_windows(*arguments))
    monkeypatch.setattr(windows_module, "MANY_WINDOW_CHANNELS", 3 * 40)  # of a map with 3 channels
    cells = every_window(5, 7)
    for count in (0, 39, 40):
        assert pool_many_windows(random_map(5, 7), cells[:count], (3, 1)).shape == (count, 30)
    assert len(calls) == 2


def test_every_different_bin_is_pooled_once(monkeypatch):
    counts = []
    maxima_of_boxes = windows_module._maxima_of_boxes

    def counted(grid, boxes):
        counts.append(len(boxes))
        return maxima_of_boxes(grid, boxes)

    monkeypatch.setattr(windows_module, "_maxima_of_boxes", counted)
    # The bins of windows of 6 x 6 cells are single cells.
    cells = np.array([(x, y, x + 6, y + 6) for x in range(6) for y in range(7)])
    pool_by_bins(random_map(12, 11), cells, (6, 3, 2, 1))
    assert counts == [12 * 11]
    pool_by_bins(random_map(12, 11), cells, (4, 3, 2))
    assert len(counts) == 3  # 4 x 4 bins do not hold those of 3 x 3


@pytest.mark.parametrize("count", [1, 700])
@pytest.mark.parametrize("wrong", [(0, 0, 8, 5), (0, 0, 7, 6), (-1, 0, 7, 5), (3, 2, 3, 5), (3, 4, 5, 2)])
def test_many_windows_outside_the_map_are_named(count, wrong):
    cells = np.repeat(every_window(5, 7)[:1], count, axis=0)
    cells[-1] = wrong
    named = re.escape(f"window {count - 1} {[0, *wrong]}: ")
    with pytest.raises(ValueError, match=f"^{named}"):
        pool_many_windows(random_map(5, 7), cells)


def test_many_windows_are_of_one_map():
    with pytest.raises(ValueError, match=r"^feature maps of shape \(2, 3, 5, 7\): must be \(1, C, H, W\)$"):
        pool_many_windows(random_map(5, 7).repeat(2, 1, 1, 1), every_window(5, 7))


def test_memory_beside_the_result_is_bounded(monkeypatch):
    """However many windows there are: tensors are allocated for one chunk at a time."""
    monkeypatch.setattr(windows_module, "MAX_POOLED_NUMBERS", 1 << 16)
    maps, cells = random_map(20, 20, channels=16), every_window(20, 20)
    sizes = []
    different_bins = windows_module._different_bins

    def watched(part, n):
        boxes, places = different_bins(part, n)
        sizes.append(16 * len(boxes))
        return boxes, places

    monkeypatch.setattr(windows_module, "_different_bins", watched)
    pool_by_bins(maps, cells, (6, 1))
    assert len(sizes) == -(-len(cells) // ((1 << 16) // (16 * 37)))
    assert max(sizes) <= 1 << 16
