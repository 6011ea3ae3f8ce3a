"""Side lengths, centres, bins and cells, against the paper's numbers and against counting one by one."""

import math
import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from references import cells_by_enumeration, center_by_enumeration, pixels_by_enumeration
from sppnet.geometry import (
    POSITIONS,
    Footprint,
    cell_window,
    check_levels,
    crop_to_cells,
    first_center,
    pyramid_bins,
    receptive_field,
    side_lengths,
    smallest_input,
    total_stride,
    window_at,
    window_to_cells,
    windows_to_cells,
)

# Kernel, stride, padding of every convolution and pooling up to the last convolution.
CONV3 = (3, 1, 1)
ZF5 = [(7, 2, 2), (3, 2, 0), (5, 2, 1), (3, 2, 0), CONV3, CONV3, CONV3]
ZF5_RELEASE = [(7, 2, 1), (3, 2, 0), (5, 2, 0), (3, 2, 0), CONV3, CONV3, CONV3]
ZF5_ALIGNED = [(7, 2, 3), (3, 2, 1), (5, 2, 2), (3, 2, 1), CONV3, CONV3, CONV3]
CONVNET5 = [(11, 4, 2), (5, 1, 2), (3, 2, 0), CONV3, (3, 2, 0), CONV3, CONV3]
CONVNET5_ALIGNED = [(11, 4, 5), (5, 1, 2), (3, 2, 1), CONV3, (3, 2, 1), CONV3, CONV3]
OVERFEAT5 = [(7, 2, 0), (3, 3, 0), (5, 1, 2), (2, 2, 0), CONV3, CONV3, CONV3]
OVERFEAT5_CNN_S = [(7, 2, 0), (3, 3, 0), (5, 1, 1), (2, 2, 0), CONV3, CONV3, CONV3]
OVERFEAT5_ALIGNED = [(7, 2, 3), (3, 3, 1), (5, 1, 2), (2, 2, 1), CONV3, CONV3, CONV3]


def layers(rows):
    return [Footprint(*row) for row in rows]


footprints = st.builds(
    lambda kernel, stride, padding: Footprint(kernel, stride, min(padding, kernel // 2)),
    st.integers(1, 11),
    st.integers(1, 4),
    st.integers(0, 5),
)


@pytest.mark.parametrize(
    ("rows", "side", "expected"),
    [
        (ZF5, 224, [111, 55, 27, 13, 13, 13, 13]),
        (ZF5, 180, [89, 44, 21, 10, 10, 10, 10]),
        (CONVNET5, 224, [55, 55, 27, 27, 13, 13, 13]),
        (CONVNET5, 180, [44, 44, 21, 21, 10, 10, 10]),
        (OVERFEAT5, 224, [109, 36, 36, 18, 18, 18, 18]),
        (OVERFEAT5, 180, [87, 29, 29, 14, 14, 14, 14]),
    ],
)
def test_side_lengths_are_those_of_table_1(rows, side, expected):
    assert side_lengths(side, layers(rows)) == expected


@pytest.mark.parametrize(
    ("rows", "sides"),
    [
        (ZF5_ALIGNED, {224: 14, 256: 16, 392: 25, 480: 30, 576: 36, 688: 43, 864: 54, 1200: 75}),
        (CONVNET5_ALIGNED, {224: 14, 256: 16}),
        (OVERFEAT5_ALIGNED, {224: 20, 256: 22, 300: 26, 360: 31, 364: 31, 448: 38, 560: 48}),
    ],
)
def test_side_lengths_with_paddings_of_half_the_kernel(rows, sides):
    assert {side: side_lengths(side, layers(rows))[-1] for side in sides} == sides


def test_a_side_that_ran_out_stays_at_zero():
    assert side_lengths(5, layers([(7, 2, 0), (3, 2, 2)])) == [0, 0]
    assert side_lengths(0, layers([(3, 1, 1)])) == [0]
    assert side_lengths(7, []) == []


@given(st.lists(footprints, min_size=1, max_size=4), st.integers(1, 60))
def test_side_lengths_are_those_of_torch(chain, side):
    row = torch.zeros(1, 1, side)
    for layer, expected in zip(chain, side_lengths(side, chain), strict=True):
        if row.shape[-1] + 2 * layer.padding < layer.kernel:
            assert expected == 0
            return
        row = F.conv1d(row, torch.ones(1, 1, layer.kernel), stride=layer.stride, padding=layer.padding)
        assert row.shape[-1] == expected


@given(st.lists(footprints, min_size=1, max_size=6))
def test_smallest_input_gives_a_cell_and_one_pixel_less_gives_none(chain):
    smallest = smallest_input(chain)
    assert smallest >= 1
    assert side_lengths(smallest, chain)[-1] >= 1
    assert side_lengths(smallest - 1, chain)[-1] == 0


def test_smallest_input_of_the_papers_networks():
    assert smallest_input(layers(ZF5)) == 31
    assert smallest_input(layers(ZF5_ALIGNED)) == 1


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        ([], []),
        (ZF5, [7, 11, 27, 43, 75, 107, 139]),
        (ZF5_ALIGNED, [7, 11, 27, 43, 75, 107, 139]),
        (CONVNET5, [11, 27, 35, 51, 67, 99, 131]),
        (OVERFEAT5, [7, 11, 35, 41, 65, 89, 113]),
        ([*OVERFEAT5, CONV3, CONV3], [7, 11, 35, 41, 65, 89, 113, 137, 161]),
    ],
)
def test_receptive_fields_of_the_papers_networks(rows, fields):
    assert [receptive_field(layers(rows[: i + 1])) for i in range(len(rows))] == fields


@given(st.lists(footprints, max_size=4), st.integers(-3, 20), st.integers(0, 9))
def test_a_cell_sees_the_pixels_between_the_first_and_the_last_one_that_reach_it(chain, column, row):
    x0, y0, x1, y1 = cell_window((column, row), chain)
    for start, end, cell in ((x0, x1, column), (y0, y1, row)):
        seen = pixels_by_enumeration(cell, chain)
        assert (start, end) == (min(seen), max(seen) + 1)
        assert end - start == receptive_field(chain)
        assert start + end - 1 == 2 * (first_center(chain) + cell * total_stride(chain))


@pytest.mark.parametrize(
    ("rows", "stride", "center"),
    [
        (ZF5, 16, 15),
        (ZF5_RELEASE, 16, 20),
        (ZF5_ALIGNED, 16, 0),
        (CONVNET5, 16, 15),
        (CONVNET5_ALIGNED, 16, 0),
        (OVERFEAT5, 12, 8),
        (OVERFEAT5_CNN_S, 12, 14),
        (OVERFEAT5_ALIGNED, 12, -3),
        ([(2, 2, 0)], 2, Fraction(1, 2)),
        ([(4, 4, 0), (2, 2, 0)], 8, Fraction(7, 2)),
        ([], 1, 0),
    ],
)
def test_total_stride_and_first_center(rows, stride, center):
    assert total_stride(layers(rows)) == stride
    assert first_center(layers(rows)) == center
    assert isinstance(first_center(layers(rows)), int) == (center == int(center))


@given(st.lists(footprints, min_size=1, max_size=5), st.integers(-3, 20))
def test_cells_are_centred_on_first_center_plus_multiples_of_the_stride(chain, cell):
    assert first_center(chain) + cell * total_stride(chain) == center_by_enumeration(cell, chain)


@pytest.mark.parametrize(
    ("side", "n", "expected"),
    [
        (10, 6, [(0, 2), (1, 4), (3, 5), (5, 7), (6, 9), (8, 10)]),
        (10, 4, [(0, 3), (2, 5), (5, 8), (7, 10)]),
        (13, 6, [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11), (10, 13)]),
        (13, 3, [(0, 5), (4, 9), (8, 13)]),
        (13, 2, [(0, 7), (6, 13)]),
        (18, 6, [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 18)]),
        (1, 3, [(0, 1), (0, 1), (0, 1)]),
        (2, 3, [(0, 1), (0, 2), (1, 2)]),
        (7, 1, [(0, 7)]),
    ],
)
def test_pyramid_bins_of_the_paper(side, n, expected):
    assert pyramid_bins(side, n) == expected


@given(st.integers(1, 3000), st.integers(1, 70))
def test_pyramid_bins_cover_the_side_and_are_never_empty(side, n):
    bins = pyramid_bins(side, n)
    assert len(bins) == n
    assert bins[0][0] == 0
    assert bins[-1][1] == side
    assert all(start < end for start, end in bins)
    assert all(start <= left_end for (_, left_end), (start, _) in pairwise(bins))
    assert bins == [(math.floor(Fraction(i * side, n)), math.ceil(Fraction((i + 1) * side, n))) for i in range(n)]
    assert bins == [(side - end, side - start) for start, end in reversed(bins)]


@given(st.integers(1, 1000), st.integers(1, 12), st.integers(1, 6))
def test_bins_of_a_level_are_unions_of_bins_of_every_level_it_divides(side, n, factor):
    finer = pyramid_bins(side, n * factor)
    groups = [finer[i * factor : (i + 1) * factor] for i in range(n)]
    assert pyramid_bins(side, n) == [(group[0][0], group[-1][1]) for group in groups]
    for group in groups:  # without a gap
        assert all(start <= end for (_, end), (start, _) in pairwise(group))


@given(st.integers(1, 200), st.integers(1, 40))
def test_pyramid_bins_are_those_of_adaptive_pooling(side, n):
    up = torch.arange(side, dtype=torch.float32)
    last = F.adaptive_max_pool1d(up[None], n)[0]
    first = -F.adaptive_max_pool1d(-up[None], n)[0]
    assert pyramid_bins(side, n) == [(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]


@pytest.mark.parametrize(("side", "n"), [(0, 1), (-3, 2), (5, 0), (5, -1)])
def test_pyramid_bins_name_wrong_arguments(side, n):
    with pytest.raises(ValueError, match=rf"side={side}, n={n}"):
        pyramid_bins(side, n)


@pytest.mark.parametrize(
    ("levels", "named"),
    [
        ([], r"\[\]"),
        ([6, 0], "0"),
        ([3, -1], "-1"),
        ([1.5], r"1\.5"),
        ([2.0], r"2\.0"),
        ([True], "True"),
        (["3"], "'3'"),
        ("63", "'63'"),
        (b"63", "b'63'"),
        (None, "None"),
        (6, "6"),
        ([[6, 3]], r"\[6, 3\]"),
    ],
)
def test_wrong_levels_are_named(levels, named):
    with pytest.raises(ValueError, match=rf"^levels=.*{named}"):
        check_levels(levels)


def test_levels_keep_their_order():
    assert check_levels([2, 6, 1, 2]) == (2, 6, 1, 2)
    assert check_levels(iter((4, 3))) == (4, 3)


@pytest.mark.parametrize(
    ("stride", "start", "end", "first", "last"),
    [
        (16, 0, 224, 1, 13),
        (16, 32, 256, 3, 15),
        (16, 16, 240, 2, 14),
        (12, 0, 224, 1, 18),
        (12, 32, 256, 3, 21),
        (12, 16, 240, 2, 19),
    ],
)
def test_window_to_cells_of_the_paper(stride, start, end, first, last):
    cells = window_to_cells((start, 0, end, 1000), stride, 0, (99, 99))
    assert cells[0::2] == (first, last + 1)
    cells = window_to_cells((0, start, 1000, end), stride, 0, (99, 99))
    assert cells[1::2] == (first, last + 1)


def test_a_window_of_training_size_covers_as_many_cells_as_a_training_map():
    for start in range(0, 160, 16):
        x0, _, x1, _ = window_to_cells((start, 0, start + 224, 224), 16, 0, (99, 99))
        assert x1 - x0 == 13
    for start in range(0, 120, 12):
        x0, _, x1, _ = window_to_cells((start, 0, start + 224, 224), 12, 0, (99, 99))
        assert x1 - x0 == 18


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((17, 1, 19, 3), (1, 0, 2, 1)),  # no centre inside: the nearest cell
        ((24, 24, 24, 24), (1, 1, 2, 2)),  # half way between cells 1 and 2: the left and upper one
        ((24.5, 23.5, 24.5, 23.5), (2, 1, 3, 2)),
        ((32, 32, 32, 32), (2, 2, 3, 3)),  # nothing wide, and on a centre
        ((16, 16, 32, 32), (1, 1, 2, 2)),  # centres on the edge are not inside
        ((-500, -500, -400, -400), (0, 0, 1, 1)),  # outside the map: its border
        ((500, 500, 600, 600), (4, 2, 5, 3)),
        ((-500, -500, 600, 600), (0, 0, 5, 3)),
        ((-500, -3, 20, 1), (0, 0, 2, 1)),
        ((-1e-20, -1e-20, 16, 16), (0, 0, 1, 1)),  # a centre is inside by however little
    ],
)
def test_window_to_cells_at_the_edges(window, expected):
    assert window_to_cells(window, 16, 0, (3, 5)) == expected


coordinates = st.one_of(
    st.integers(-200, 400),
    st.integers(-1600, 3200).map(lambda eighths: eighths / 8),
)
offsets = st.one_of(st.integers(-20, 30), st.integers(-40, 60).map(lambda halves: Fraction(halves, 2)), st.just(7.5))


@given(
    st.tuples(coordinates, coordinates),
    st.tuples(coordinates, coordinates),
    st.integers(1, 33),
    offsets,
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_window_to_cells_keeps_the_cells_whose_centres_are_inside(xs, ys, stride, offset, height, width):
    (x0, x1), (y0, y1) = sorted(xs), sorted(ys)
    cells = window_to_cells((x0, y0, x1, y1), stride, offset, (height, width))
    assert cells[0::2] == cells_by_enumeration(x0, x1, stride, offset, width)
    assert cells[1::2] == cells_by_enumeration(y0, y1, stride, offset, height)
    assert all(type(cell) is int for cell in cells)


@given(coordinates, st.integers(0, 3), st.integers(1, 33), offsets, st.integers(1, 12))
def test_tiny_windows_take_one_cell(start, eighths, stride, offset, cells):
    end = start + eighths / 8
    x0, y0, x1, y1 = window_to_cells((start, start, end, end), stride, offset, (cells, cells))
    assert (x0, x1) == (y0, y1) == cells_by_enumeration(start, end, stride, offset, cells)
    assert x1 - x0 == 1


@pytest.mark.parametrize(
    "window",
    [
        (5, 0, 4, 9),  # inside out
        (0, 5, 9, 4),
        *((0, 0, math.nan, 4), (0, 0, math.inf, 4), (-math.inf, 0, 1, 1)),  # not finite
        *((0, 0, 4, math.nan), (0, 0, 4, math.inf), (0, -math.inf, 1, 1)),
    ],
)
def test_wrong_windows_are_named(window):
    with pytest.raises(ValueError, match=r"^window=\("):
        window_to_cells(window, 16, 0, (3, 3))


@pytest.mark.parametrize(("stride", "map_size"), [(0, (3, 3)), (-16, (3, 3)), (16, (0, 3)), (16, (3, 0))])
def test_wrong_strides_and_maps_are_named(stride, map_size):
    with pytest.raises(ValueError, match=rf"stride={stride}, map_size=\({map_size[0]}, {map_size[1]}\)"):
        window_to_cells((0, 0, 5, 5), stride, 0, map_size)


@pytest.mark.parametrize(
    "rows", [ZF5, ZF5_RELEASE, CONVNET5, OVERFEAT5, OVERFEAT5_CNN_S, ZF5_ALIGNED, CONVNET5_ALIGNED]
)
def test_a_crop_takes_as_many_cells_of_the_map_as_it_has_itself_from_the_nearest_one(rows):
    footprints_of, stride = layers(rows), total_stride(layers(rows))
    for image, size in ((256, 224), (341, 224), (357, 180), (560, 224), (224, 224)):
        cells, count = side_lengths(image, footprints_of)[-1], side_lengths(size, footprints_of)[-1]
        for x in range(image - size + 1):
            x0, y0, x1, y1 = crop_to_cells((x, 0, x + size, size), stride, (count, count), (cells, cells))
            assert (x1 - x0, y0, y1) == (count, 0, count)
            # The cell whose centre is nearest to the crop's first one, the right one of two; the crop must fit.
            nearest = min(range(cells - count + 1), key=lambda i: (abs(stride * i - x), -i))
            assert x0 == nearest


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((0, 0, 99, 99), (0, 0, 3, 2)),
        ((7, 0, 99, 99), (0, 0, 3, 2)),
        ((8, 0, 99, 99), (1, 0, 4, 2)),  # half a stride: the right cell
        ((23, 24, 99, 99), (1, 2, 4, 4)),
        ((24, 23, 99, 99), (2, 1, 5, 3)),
        ((999, 999, 999, 999), (4, 3, 7, 5)),  # moved to the border
        ((-999, -999, 0, 0), (0, 0, 3, 2)),
    ],
)
def test_crop_to_cells_by_hand(window, expected):
    assert crop_to_cells(window, 16, (2, 3), (5, 7)) == expected


def test_a_crop_with_more_cells_than_the_map_takes_them_all():
    assert crop_to_cells((3, 3, 9, 9), 16, (5, 5), (2, 3)) == (0, 0, 3, 2)


def test_a_crop_of_one_cell_on_a_map_of_the_same_stride_as_the_image():
    assert crop_to_cells((2, 0, 3, 1), 1, (1, 1), (1, 4)) == (2, 0, 3, 1)


@pytest.mark.parametrize(("stride", "crop", "cells"), [(0, (1, 1), (1, 1)), (1, (0, 1), (1, 1)), (1, (1, 1), (1, 0))])
def test_wrong_crops_are_named(stride, crop, cells):
    with pytest.raises(ValueError, match=rf"stride={stride}, crop_size=\({crop[0]}, {crop[1]}\), map_size="):
        crop_to_cells((0, 0, 5, 5), stride, crop, cells)


@pytest.mark.parametrize(
    ("position", "left", "top"),
    [("center", 3, 1), ("top_left", 0, 0), ("top_right", 7, 0), ("bottom_left", 0, 3), ("bottom_right", 7, 3),
     ("top", 3, 0), ("bottom", 3, 3), ("left", 0, 1), ("right", 7, 1)],
)  # fmt: skip
def test_windows_are_placed_in_the_entire_image(position, left, top):
    assert window_at(position, 5, 8, 12) == (left, top, left + 5, top + 5)


def test_a_window_as_large_as_the_image_is_all_of_it_at_every_position():
    assert {window_at(position, 7, 7, 7) for position in POSITIONS} == {(0, 0, 7, 7)}
    assert window_at("center", 1, 1, 1) == (0, 0, 1, 1)


@pytest.mark.parametrize("size", [(4, 9), (9, 4)])
def test_an_image_that_is_too_small_for_the_window_is_named(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels is smaller than the crop of 5x5"):
        window_at("center", 5, *size)


@pytest.mark.parametrize("position", ["middle", ""])
def test_unknown_positions_are_named(position):
    with pytest.raises(ValueError, match=f"position='{position}': must be one of center, top_left"):
        window_at(position, 5, 9, 9)


COORDINATES = st.integers(-300, 900) | st.floats(-300, 900)


@given(
    st.lists(st.tuples(*4 * [COORDINATES]), max_size=20),
    st.sampled_from([1, 2, 12, 16, 32]),
    st.sampled_from([0, 15, -6, Fraction(31, 2), Fraction(15, 2), 6.5]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_cells_of_many_windows_are_those_of_each(corners, stride, offset, map_size):
    windows = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    cells = windows_to_cells(np.array(windows, float).reshape(-1, 4), stride, offset, map_size)
    assert cells.dtype == np.int64
    assert cells.shape == (len(windows), 4)
    assert cells.tolist() == [list(window_to_cells(window, stride, offset, map_size)) for window in windows]


@pytest.mark.parametrize("window", [(5, 0, 4, 9), (0, 5, 9, 4), (0, 0, math.inf, 9), (math.nan, 0, 9, 9)])
def test_the_first_wrong_window_of_many_is_named(window):
    with pytest.raises(ValueError, match=re.escape(f"window={tuple(map(float, window))}: must be finite")):
        windows_to_cells(np.array([(0, 0, 5, 5), window, (9, 9, 0, 0)], float), 16, 0, (5, 5))


@pytest.mark.parametrize(
    ("shape", "stride", "map_size"),
    [((3, 5), 16, (5, 5)), ((4,), 16, (5, 5)), ((1, 4), 0, (5, 5)), ((1, 4), 16, (5, 0))],
)
def test_arrays_strides_and_maps_that_are_wrong_are_named(shape, stride, map_size):
    with pytest.raises(ValueError, match=r"windows of shape|stride=.*, map_size="):
        windows_to_cells(np.zeros(shape), stride, 0, map_size)
