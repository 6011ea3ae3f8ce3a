"""Scales, cells and pooled vectors of windows, against slow versions in exact fractions, one window at a time."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.backbones import Backbone, Conv, Pool, build_backbone
from sppnet.detect import maps as maps_module
from sppnet.detect.maps import (
    WindowRules,
    check_scales,
    find_cells,
    image_maps,
    nearest_scale,
    pool_windows_at_scales,
    release_cells,
    release_scale,
)
from sppnet.geometry import cut_to_longest_aspect, size_at_shorter_side, window_to_cells
from sppnet.network import SPPNet

PAPER_SCALES = (480, 576, 688, 864, 1200)
SIZES = [(70, 93), (93, 70), (131, 64), (1, 1), (1, 13), (11, 7), (64, 64)]


def build(seed=0, levels=(3, 2, 1), **options):
    torch.manual_seed(seed)
    options = {"hidden": 8, "initialization": "fan_in", "input_std": (58.0, 57.0, 56.0)} | options
    return SPPNet(build_backbone("zf5", width=0.05), levels, 4, **options).eval()


@pytest.fixture(scope="module")
def network():
    return build()


def random_image(height, width, seed=0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))


def random_windows(height, width, count=40, seed=0):
    """Windows of whole pixels inside an image, some of them empty, and the whole image."""
    random = np.random.default_rng(seed)
    x, y = (np.sort(random.integers(0, side + 1, (count, 2)), axis=1) for side in (width, height))
    windows = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    return np.concatenate([windows, [(0, 0, width, height)]])


# Slow versions.


def slow_scale(window, size, scales):
    """The index of the first scale at which the window's area is nearest to 224 x 224, in fractions."""
    x0, y0, x1, y1 = map(Fraction, window)
    distances = []
    for scale in scales:
        height, width = size_at_shorter_side(*size, scale)
        area = (x1 - x0) * Fraction(width, size[1]) * (y1 - y0) * Fraction(height, size[0])
        distances.append(abs(area - 224 * 224))
    return distances.index(min(distances))


def slow_cells(window, size, scale, backbone):
    """The cells of a window of an image that is not cut, from its exact place in the resized image."""
    height, width = size_at_shorter_side(*size, scale)
    x0, y0, x1, y1 = map(Fraction, window)
    x_ratio, y_ratio = Fraction(width, size[1]), Fraction(height, size[0])
    scaled = (x0 * x_ratio, y0 * y_ratio, x1 * x_ratio, y1 * y_ratio)
    return window_to_cells(scaled, backbone.stride, backbone.offset, map_size(backbone, height, width))


def map_size(backbone, height, width):
    return backbone.map_side(height), backbone.map_side(width)


def slow_release_scale(box, min_side, scales):
    """utils/spm_pool/spm_expected_scale.m, for a box of pixels from 1, the last ones included."""
    x1, y1, x2, y2 = box
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    expected = math.floor(13 * 16 * min_side / math.sqrt(area) + 0.5)
    distances = [abs(scale - expected) for scale in scales]
    return distances.index(min(distances))


def slow_release_cells(box, scale, min_side, width, height):
    """spp_features_convX_to_poolX.m and spm_pool_caffe_mex.cpp for ZF-5, all counted from 1, the last ones included."""
    offset0, offset, step = 21, 6.5, 16
    x0, y0, x1, y1 = ((x - 1) * (scale - 1) / (min_side - 1) + 1 for x in box)

    def along(start, end, cells):
        start = int(math.floor((start - offset0 + offset) / step + 0.5) + 1)
        end = int(math.ceil((end - offset0 - offset) / step - 0.5) + 1)
        if start > end:
            start = end = int((start + end) / 2)
        return min(cells, max(1, start)), min(cells, max(1, end))

    (left, right), (top, bottom) = along(x0, x1, width), along(y0, y1, height)
    return left, top, right, bottom


# Scales.


@st.composite
def images_and_windows(draw):
    size = draw(st.integers(1, 600)), draw(st.integers(1, 600))
    size = cut_to_longest_aspect(*size)
    windows = random_windows(*size, count=10, seed=draw(st.integers(0, 1000)))
    return size, windows.astype(np.float64)


@given(images_and_windows(), st.lists(st.integers(1, 2000), min_size=1, max_size=5, unique=True))
def test_a_window_takes_the_scale_at_which_its_area_is_nearest_to_224_x_224(drawn, scales):
    size, windows = drawn
    expected = [slow_scale(window, size, scales) for window in windows.tolist()]
    assert nearest_scale(windows, size, scales).tolist() == expected


def test_of_equally_near_scales_the_first_is_taken():
    windows = np.array([(0.0, 0.0, 224.0, 224.0)])  # 313.6 and 44.8 pixels wide: 98344.96 + 2007.04 = 2 * 224**2
    assert nearest_scale(windows, (280, 280), [392, 56]) == [0]
    assert nearest_scale(windows, (280, 280), [56, 392]) == [0]


def test_scales_of_the_paper():
    windows = np.array([(0, 0, side, side) for side in (40, 73, 97, 110, 150, 375)], np.float64)
    # Of 375 pixels: a window of 70 has 224 pixels at scale 1200, one of 122 at 688, one of 175 at 480.
    assert np.array(PAPER_SCALES)[nearest_scale(windows, (375, 500), PAPER_SCALES)].tolist() == [
        1200, 1200, 864, 688, 576, 480,
    ]  # fmt: skip


@given(images_and_windows(), st.lists(st.integers(1, 2000), min_size=1, max_size=5, unique=True))
def test_scales_of_the_release(drawn, scales):
    size, windows = drawn
    windows = windows[(windows[:, :2] < windows[:, 2:]).all(axis=1)]
    expected = [slow_release_scale((x0 + 1, y0 + 1, x1, y1), min(size), scales) for x0, y0, x1, y1 in windows.tolist()]
    assert release_scale(windows, size, scales).tolist() == expected


def test_an_empty_window_has_a_scale_in_the_release_too():
    assert release_scale(np.array([(5.0, 5.0, 5.0, 5.0)]), (100, 100), [480, 688]) == [1]


# Cells.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aligned", [False, True])
def test_cells_are_those_of_the_windows_exact_place_at_its_scale(network, size, aligned):
    backbone = network.backbone.aligned() if aligned else network.backbone
    windows, rules = random_windows(*size), WindowRules(scales=(64, 150, 97))
    found = find_cells(windows, size, backbone, rules)
    scales = [slow_scale(window, size, rules.scales) for window in windows.tolist()]
    cells = [slow_cells(w, size, rules.scales[i], backbone) for w, i in zip(windows.tolist(), scales, strict=True)]
    assert found.scales[found.places].tolist() == scales
    assert list(map(tuple, found.cells[found.places].tolist())) == cells


def test_a_window_of_224_pixels_takes_the_cells_that_the_paper_gives(network):
    windows = np.array([(0, 0, 224, 224), (32, 16, 256, 240)])
    found = find_cells(windows, (400, 400), network.backbone.aligned(), WindowRules(scales=(400,)))
    assert found.cells[found.places].tolist() == [[1, 1, 14, 14], [3, 2, 16, 15]]  # 1..13 and 3..15, 2..14


def test_cells_of_the_release():
    """With its paddings: the first cell is centred on pixel 21, counted from 1."""
    table = (Conv(4, 7, 2, 1), Pool(3, 2), Conv(4, 5, 2, 0), Pool(3, 2), *3 * (Conv(4, 3, 1, 1),))
    backbone = Backbone("zf5", table, 1.0, "none")
    assert (backbone.offset, backbone.stride) == (20, 16)
    for size, scale in [((300, 211), 480), ((97, 130), 688), ((2, 13), 96)]:
        windows = random_windows(*size, count=200)
        windows = windows[(windows[:, :2] < windows[:, 2:]).all(axis=1)]
        height, width = map_size(backbone, *size_at_shorter_side(*size, scale))
        found = release_cells(windows.astype(np.float64), size, scale, backbone)
        for (x0, y0, x1, y1), cells in zip(windows.tolist(), found.tolist(), strict=True):
            left, top, right, bottom = slow_release_cells((x0 + 1, y0 + 1, x1, y1), scale, min(size), width, height)
            assert cells == [left - 1, top - 1, right, bottom]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell_rule", ["centers", "release"])
def test_cells_are_inside_the_map_and_not_empty(network, size, cell_rule):
    rules = WindowRules(scales=(64, 97), scale_rule="release", cell_rule=cell_rule)
    windows = np.concatenate([random_windows(*size), [(-9, -9, -5, -5), (999, 999, 2000, 3000), (-5, -7, 999, 2e4)]])
    found = find_cells(windows, size, network.backbone, rules)
    sides = np.array([map_size(network.backbone, *size_at_shorter_side(*size, s)) for s in rules.scales])
    x0, y0, x1, y1 = found.cells.T
    assert ((x0 >= 0) & (x0 < x1) & (x1 <= sides[found.scales, 1])).all()
    assert ((y0 >= 0) & (y0 < y1) & (y1 <= sides[found.scales, 0])).all()


def test_what_is_outside_the_image_does_not_count(network):
    size, rules = (70, 93), WindowRules(scales=(64, 150))
    inside = find_cells(np.array([(0, 0, 40, 30), (50, 60, 93, 70)]), size, network.backbone, rules)
    beyond = find_cells(np.array([(-99, -5, 40, 30), (50, 60, 1e6, 71)]), size, network.backbone, rules)
    assert np.array_equal(inside.scales[inside.places], beyond.scales[beyond.places])
    assert np.array_equal(inside.cells[inside.places], beyond.cells[beyond.places])


@pytest.mark.parametrize("size", [(3, 101), (101, 3)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_windows_of_very_long_images_lie_on_what_is_left_of_them(network, size, mirrored):
    """101 pixels are cut to 48 in the middle, those from 26 on."""
    x, y = (26, 0) if size[0] == 3 else (0, 26)
    windows, rules = random_windows(*size), WindowRules(scales=(64, 97))
    found = find_cells(windows, size, network.backbone, rules, mirrored=mirrored)
    cut = np.array(cut_to_longest_aspect(*size))
    moved = (windows - [x, y, x, y]).clip(0, [*cut[::-1], *cut[::-1]])
    expected = find_cells(moved, tuple(cut), network.backbone, rules, mirrored=mirrored)
    assert np.array_equal(found.cells[found.places], expected.cells[expected.places])
    assert np.array_equal(found.scales[found.places], expected.scales[expected.places])
    image = random_image(*size)
    for map_, other in zip(
        image_maps(network, image, rules.scales, mirrored=mirrored),
        image_maps(network, image[:, y : y + cut[0], x : x + cut[1]], rules.scales, mirrored=mirrored),
        strict=True,
    ):
        assert torch.equal(map_, other)


@pytest.mark.parametrize("window", [(5, 0, 4, 9), (0, 9, 9, 8), (0, 0, np.nan, 1), (-np.inf, 0, 1, 1)])
def test_windows_that_are_inside_out_or_not_finite_are_named(network, window):
    with pytest.raises(
        ValueError, match=r"^window 1 \[.*\]: must be finite \(x0, y0, x1, y1\), x0 <= x1 and y0 <= y1$"
    ):
        find_cells(np.array([(0, 0, 1, 1), window]), (70, 93), network.backbone, WindowRules(scales=(64,)))


def test_windows_of_another_shape_are_refused(network):
    with pytest.raises(ValueError, match=r"^windows of shape \(2, 5\): must be \(K, 4\)$"):
        find_cells(np.zeros((2, 5)), (70, 93), network.backbone, WindowRules(scales=(64,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_rule": "nearest"}, "scale_rule='nearest': must be one of area, release"),
        ({"cell_rule": "area"}, "cell_rule='area': must be one of centers, release"),
        ({"scales": ()}, "scales=[]: must be sides in pixels, each once, such as [688]"),
        ({"scales": (480, 480)}, "scales=[480, 480]: must be sides in pixels, each once, such as [688]"),
        ({"scales": (0,)}, "scales=[0]: must be sides in pixels, each once, such as [688]"),
        ({"context": 0.9}, "context=0.9: must be from 1 to 4"),
    ],
)
def test_wrong_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        WindowRules(**options)


# Maps.


def slow_map(network, image, scale, mirrored=False):
    size = size_at_shorter_side(*image.shape[1:], scale)
    pixels = F.interpolate(image[None], size, mode="bilinear", antialias=True).float()
    pixels = pixels.flip(-1) if mirrored else pixels
    mean, std = (torch.tensor(values)[:, None, None] for values in (network.input_mean, network.input_std))
    with torch.no_grad():
        return network.maps((pixels - mean) / std)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_maps_are_those_of_the_resized_image(network, size, mirrored):
    image = random_image(*size)
    maps = image_maps(network, image, (64, 97), mirrored=mirrored)
    for scale, map_ in zip((64, 97), maps, strict=True):
        assert map_.dtype == torch.float16
        assert map_.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(map_.float(), slow_map(network, image, scale, mirrored), rtol=2e-3, atol=1e-4)


def test_bf16_maps_are_close(network):
    image = random_image(70, 93)
    (exact,), (bf16,) = (image_maps(network, image, [97], autocast=dtype) for dtype in (None, torch.bfloat16))
    assert not torch.equal(exact, bf16)
    torch.testing.assert_close(bf16, exact, rtol=0.05, atol=0.05 * float(exact.max()))


def test_maps_beyond_float16_are_refused():
    network = build()
    with torch.no_grad():
        network.backbone.conv5.weight.mul_(1e8)
    with pytest.raises(ValueError, match=r"^its feature maps are not finite, or beyond the range of float16"):
        image_maps(network, random_image(70, 93), [64])


@pytest.mark.parametrize(
    ("network", "scales", "message"),
    [
        (build(levels=None), [224], r"^the network has no pyramid: it takes 224 x 224 images only"),
        (build().train(), [224], r"^the network is in training mode"),
        (build(), [224, 20], r"^scales=\[224, 20\]: 20 must be from 31 to 4096 pixels$"),
        (build(), [4097], r"^scales=\[4097\]: 4097 must be from 31 to 4096 pixels$"),
    ],
)
def test_networks_and_scales_that_do_not_suit_are_refused(network, scales, message):
    with pytest.raises(ValueError, match=message):
        check_scales(network, scales)
    with pytest.raises(ValueError, match=message):
        image_maps(network, random_image(300, 300), scales)


# Pooled windows.


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(SIZES),
    st.sampled_from(["centers", "release"]),
    st.booleans(),
    st.sampled_from([1, 3000, 1 << 25]),
    st.integers(0, 99),
)
def test_a_window_is_pooled_as_the_part_of_the_map_that_it_takes(size, cell_rule, mirrored, chunk, seed):
    network, image, windows = build(), random_image(*size), random_windows(*size, count=60, seed=seed)
    rules = WindowRules(scales=(64, 130, 97), cell_rule=cell_rule)
    maps = image_maps(network, image, rules.scales, mirrored=mirrored)
    found = find_cells(windows, size, network.backbone, rules, mirrored=mirrored)
    calls = []

    def head(pooled):
        assert pooled.dtype == torch.float32
        calls.append(len(pooled))
        return 2 * pooled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps_module, "MAX_POOLED_NUMBERS", chunk)
        pooled = pool_windows_at_scales(maps, found, network.pyramid.levels, head)

    assert sum(calls) == len(found)
    assert max(calls) <= max(1, chunk // network.fc6.in_features)
    assert len(pooled) == len(windows)
    for row, scale, (x0, y0, x1, y1) in zip(
        pooled, found.scales[found.places], found.cells[found.places].tolist(), strict=True
    ):
        assert torch.equal(row, 2 * network.pyramid(maps[scale][:, :, y0:y1, x0:x1].float())[0])


def test_equal_scales_and_cells_are_pooled_once(network):
    windows = np.array([(0, 0, 60, 60), (0, 0, 61, 60), (0, 0, 60, 60), (30, 0, 93, 60), (1, 1, 9, 9), (2, 1, 9, 9)])
    found = find_cells(windows, (70, 93), network.backbone, WindowRules(scales=(64, 400)))
    assert found.places[0] == found.places[1] == found.places[2] != found.places[3]
    assert len(found) == len({*zip(found.scales.tolist(), map(tuple, found.cells.tolist()), strict=True)}) < 6
    assert sorted(set(found.places.tolist())) == list(range(len(found)))


def test_the_same_cells_at_two_scales_are_two(network):
    windows = np.array([(0, 0, 224, 224), (0, 0, 112, 112)])
    found = find_cells(windows, (448, 448), network.backbone, WindowRules(scales=(448, 896)))
    assert (found.scales.tolist(), found.places.tolist()) == ([0, 1], [0, 1])
    assert found.cells[0].tolist() == found.cells[1].tolist()


def test_an_image_without_windows_has_no_rows(network):
    found = find_cells(np.zeros((0, 4), np.int16), (70, 93), network.backbone, WindowRules(scales=(64,)))
    maps = image_maps(network, random_image(70, 93), [64])
    pooled = pool_windows_at_scales(maps, found, (3, 2, 1), lambda pooled: pooled[:, :5])
    assert pooled.shape == (0, 5)


def test_windows_of_the_mirror_image_hold_the_mirrored_pixels(network):
    size, rules = (70, 93), WindowRules(scales=(64, 130))
    image, windows = random_image(*size), random_windows(*size)
    x0, y0, x1, y1 = windows.T
    flipped = np.stack([93 - x1, y0, 93 - x0, y1], axis=1)
    found = find_cells(windows, size, network.backbone, rules, mirrored=True)
    expected = find_cells(flipped, size, network.backbone, rules)
    assert np.array_equal(found.cells[found.places], expected.cells[expected.places])
    for map_, other in zip(
        image_maps(network, image, rules.scales, mirrored=True),
        image_maps(network, image.flip(-1), rules.scales),
        strict=True,
    ):
        torch.testing.assert_close(map_, other, rtol=0.02, atol=0.02)  # resizing rounds to whole values


@pytest.mark.parametrize("mirrored", [False, True])
def test_with_context_a_window_takes_the_cells_of_a_larger_one(network, mirrored):
    """Of sides 1.5 times as long around the same centre, as far as the image reaches."""
    windows = np.array([[20, 30, 60, 50], [0, 0, 10, 90], [80, 60, 93, 70]])
    larger = np.array([[10, 25, 70, 55], [-2.5, -22.5, 12.5, 112.5], [76.75, 57.5, 96.25, 72.5]])
    with_context = find_cells(windows, (93, 93), network.backbone, WindowRules(context=1.5), mirrored=mirrored)
    expected = find_cells(larger, (93, 93), network.backbone, WindowRules(), mirrored=mirrored)
    np.testing.assert_array_equal(with_context.cells[with_context.places], expected.cells[expected.places])
    np.testing.assert_array_equal(with_context.scales[with_context.places], expected.scales[expected.places])


def test_int16_windows_do_not_overflow(network):
    windows = np.array([(0, 0, 30000, 20000), (29000, 100, 30000, 20000)], np.int16)
    rules = WindowRules(scales=(480, 688))
    found = find_cells(windows, (20000, 30000), network.backbone, rules)
    expected = find_cells(windows.astype(np.float64), (20000, 30000), network.backbone, rules)
    assert np.array_equal(found.cells, expected.cells)
    assert (found.cells >= 0).all()
