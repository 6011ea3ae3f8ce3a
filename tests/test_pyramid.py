"""Spatial pyramid pooling of maps and of windows, against loops over the bins and against adaptive pooling."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from references import pool_windows_by_cutting, pyramid_pool_by_loops
from sppnet.geometry import pyramid_bins
from sppnet.pyramid import SpatialPyramidPool, bins_one_by_one, pool_windows

SIZES = [(1, 1), (1, 7), (2, 3), (5, 4), (6, 6), (7, 7), (7, 10), (10, 10), (11, 13), (13, 13), (18, 14), (35, 22)]
PYRAMIDS = [(6, 3, 2, 1), (4, 3, 2, 1), (1,), (5, 3), (2, 6, 1), (3, 3), (7, 5)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def random_maps(*shape, dtype=torch.float32, layout=torch.contiguous_format, seed=0):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return maps.to(dtype).contiguous(memory_format=layout)


def maps_without_ties(*shape, seed=0):
    values = torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(seed))
    return values.double().view(shape) - values.numel() // 2


def pool_level_by_level(maps, levels):
    return torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in levels], dim=1)


def gradient(pool, maps):
    """The gradient of a sum with a different whole weight for every output: exact in any order of adding."""
    maps = maps.clone().requires_grad_()
    pooled = pool(maps)
    (pooled * torch.arange(1, pooled.numel() + 1, dtype=pooled.dtype).view_as(pooled)).sum().backward()
    return maps.grad


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("levels", PYRAMIDS)
@pytest.mark.parametrize("size", SIZES)
def test_pyramid_is_the_maximum_of_every_bin(size, levels):
    maps = random_maps(2, 3, *size)
    pooled = SpatialPyramidPool(levels)(maps)
    assert pooled.shape == (2, 3 * sum(n * n for n in levels))
    assert_same(pooled, pyramid_pool_by_loops(maps, levels))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pyramid_equals_adaptive_pooling_level_by_level(dtype, layout):
    for size in SIZES:
        for levels in PYRAMIDS:
            maps = random_maps(2, 3, *size, dtype=dtype, layout=layout)
            pooled = SpatialPyramidPool(levels)(maps)
            assert pooled.dtype == dtype
            assert_same(pooled, pool_level_by_level(maps, levels))


def test_levels_stand_in_the_given_order_each_as_channel_row_column():
    maps = random_maps(1, 2, 5, 7)
    pooled = SpatialPyramidPool((1, 3))(maps)
    assert_same(pooled[0, :2], maps.amax((2, 3))[0])
    grid = pooled[0, 2:].view(2, 3, 3)
    rows, columns = pyramid_bins(5, 3), pyramid_bins(7, 3)
    assert grid[1, 0, 2] == maps[0, 1, slice(*rows[0]), slice(*columns[2])].max()


def test_bins_counts_the_bins_of_all_levels():
    assert SpatialPyramidPool((6, 3, 2, 1)).bins == 50
    assert SpatialPyramidPool((4, 3, 2, 1)).bins == 30
    assert SpatialPyramidPool((3, 3)).bins == 18
    assert SpatialPyramidPool().levels == (6, 3, 2, 1)


@pytest.mark.parametrize(
    ("side", "n", "kernel", "stride"),
    [
        *[(13, 6, 3, 2), (13, 4, 4, 3), (13, 3, 5, 4), (13, 2, 7, 6), (13, 1, 13, 13)],
        *[(18, 6, 3, 3), (18, 3, 6, 6), (18, 2, 9, 9), (18, 1, 18, 18)],
    ],
)
def test_at_224_a_level_is_the_papers_sliding_window(side, n, kernel, stride):
    maps = random_maps(1, 4, side, side)
    assert_same(SpatialPyramidPool((n,))(maps), F.max_pool2d(maps, kernel, stride).flatten(1))


def test_at_18_cells_the_papers_sliding_window_for_n_4_leaves_cells_out():
    maps = random_maps(1, 4, 18, 18)
    assert not torch.equal(SpatialPyramidPool((4,))(maps), F.max_pool2d(maps, 5, 4).flatten(1))


@pytest.fixture
def pooled_shapes(monkeypatch):
    """The shapes of what adaptive pooling was called for, in order."""
    shapes, pool = [], F.adaptive_max_pool2d

    def noting(maps, n):
        shapes.append(tuple(maps.shape))
        return pool(maps, n)

    monkeypatch.setattr(F, "adaptive_max_pool2d", noting)
    return shapes


@pytest.mark.parametrize(
    ("levels", "finest", "nested"),
    [
        ((6, 3, 2, 1), 1, [6, 6, 6]),
        ((1, 2, 3, 6), 1, [6, 6, 6]),
        ((4, 3, 2, 1), 2, [4, 4]),  # 4 and 3 need the map; 2 and 1 are within the 4 x 4 bins
        ((5, 3), 2, []),
    ],
)
def test_the_map_is_read_only_for_levels_that_divide_no_finer_one(levels, finest, nested, pooled_shapes):
    SpatialPyramidPool(levels)(random_maps(2, 3, 13, 11))
    assert pooled_shapes == [(2, 3, 13, 11)] * finest + [(2, 3, n, n) for n in nested]


def test_windows_of_finite_maps_are_pooled_together(pooled_shapes):
    windows = torch.tensor([[0, 0, 0, 11, 13], [1, 2, 3, 9, 7], [1, 0, 0, 1, 1], [0, 4, 4, 10, 10]])
    pool_windows(random_maps(2, 3, 13, 11), windows, (6, 3, 2, 1))
    assert pooled_shapes == [(4, 3, 6, 6)] * 3  # no window was cut out


def test_negative_maps_stay_negative():
    maps = -1 - random_maps(2, 3, 4, 9).abs()
    assert SpatialPyramidPool((6, 3, 1))(maps).max() <= -1
    windows = torch.tensor([[0, 0, 0, 9, 4], [1, 8, 3, 9, 4]])
    assert pool_windows(maps, windows, (6, 3, 1)).max() <= -1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_comes_through(value, dtype):
    maps = random_maps(2, 3, 8, 5, dtype=dtype)
    maps[0, 1, 6, 4] = value
    maps[1, 2] = value
    assert_same(SpatialPyramidPool((6, 3, 1))(maps), pool_level_by_level(maps, (6, 3, 1)))
    windows = torch.tensor([[0, 1, 2, 5, 8], [0, 0, 0, 5, 5], [1, 2, 2, 3, 3]])
    expected = torch.cat([pool_level_by_level(maps[i : i + 1, :, t:b, x:r], (6, 1)) for i, x, t, r, b in windows])
    assert_same(pool_windows(maps, windows, (6, 1)), expected)


@pytest.mark.parametrize("levels", PYRAMIDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 10), (13, 11)])
def test_gradient_equals_that_of_adaptive_pooling_level_by_level(size, levels):
    maps = maps_without_ties(2, 2, *size)
    expected = gradient(lambda maps: pool_level_by_level(maps, levels), maps)
    assert_same(gradient(SpatialPyramidPool(levels), maps), expected)
    in_channels_last = maps.contiguous(memory_format=torch.channels_last)
    assert_same(gradient(SpatialPyramidPool(levels), in_channels_last), expected)


def test_gradient_of_a_tie_goes_to_one_cell_of_the_bin():
    grad = gradient(SpatialPyramidPool((1,)), torch.zeros(1, 1, 4, 5))
    assert sorted(grad.flatten().tolist()) == [0.0] * 19 + [1.0]


def test_gradient_equals_finite_differences():
    maps = maps_without_ties(1, 2, 7, 5).requires_grad_()
    assert torch.autograd.gradcheck(SpatialPyramidPool((6, 3, 2, 1)), maps)
    windows = torch.tensor([[0, 0, 1, 4, 7], [0, 2, 2, 3, 3]])
    assert torch.autograd.gradcheck(lambda maps: pool_windows(maps, windows, (3, 2)), maps)


def test_an_empty_batch_gives_an_empty_result():
    assert SpatialPyramidPool((6, 3, 4))(torch.zeros(0, 2, 5, 5)).shape == (0, 2 * 61)


@pytest.mark.parametrize("levels", [[], [6, 0], [-1], [1.5], [True], "63", None, 6])
def test_wrong_levels_are_named(levels):
    named = repr(levels[-1] if isinstance(levels, list) and levels else levels).replace("[", r"\[")
    with pytest.raises(ValueError, match=named):
        SpatialPyramidPool(levels)
    with pytest.raises(ValueError, match=named):
        pool_windows(torch.zeros(1, 1, 3, 3), torch.tensor([[0, 0, 0, 1, 1]]), levels)


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4), (1, 2, 3, 4, 4), (1, 3, 0, 4), (1, 3, 4, 0)])
def test_wrong_maps_are_named(shape):
    with pytest.raises(ValueError, match=str(shape)[1:-1]):
        SpatialPyramidPool()(torch.zeros(shape))


def test_the_module_shows_its_levels():
    assert repr(SpatialPyramidPool([4, 1])) == "SpatialPyramidPool(levels=[4, 1])"


@st.composite
def maps_with_windows(draw):
    images, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 35)), draw(st.integers(1, 22))
    row = st.tuples(
        st.integers(0, images - 1),
        st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True).map(sorted),
        st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True).map(sorted),
    )
    rows = draw(st.lists(row, max_size=6))
    windows = torch.tensor([[i, x0, y0, x1, y1] for i, (x0, x1), (y0, y1) in rows], dtype=torch.int64).view(-1, 5)
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    maps = random_maps(images, 3, height, width, dtype=dtype, layout=layout, seed=draw(st.integers(0, 99)))
    return maps, windows


@settings(deadline=None)
@given(maps_with_windows(), st.sampled_from(PYRAMIDS))
def test_windows_are_pooled_like_cut_outs(maps_and_windows, levels):
    maps, windows = maps_and_windows
    pooled = pool_windows(maps, windows, levels)
    assert pooled.dtype == maps.dtype
    assert pooled.shape == (len(windows), 3 * sum(n * n for n in levels))
    if len(windows):
        assert_same(pooled, pool_windows_by_cutting(maps, windows, levels))


def test_single_cells_and_repeated_windows():
    maps = random_maps(2, 3, 4, 5)
    windows = torch.tensor([[1, 4, 3, 5, 4], [0, 0, 0, 1, 1], [1, 4, 3, 5, 4], [1, 4, 3, 5, 4]])
    pooled = pool_windows(maps, windows, (2, 1))
    assert_same(pooled[0, -3:], maps[1, :, 3, 4])
    assert_same(pooled[1, -3:], maps[0, :, 0, 0])
    assert_same(pooled[2], pooled[0])
    assert_same(pooled[3], pooled[0])


def test_a_window_over_the_whole_map_is_the_pyramid():
    maps = random_maps(2, 3, 13, 11)
    windows = torch.tensor([[0, 0, 0, 11, 13], [1, 0, 0, 11, 13]])
    assert_same(pool_windows(maps, windows), SpatialPyramidPool()(maps))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_windows_of_any_integer_dtype(dtype):
    maps = random_maps(1, 2, 6, 6)
    windows = torch.tensor([[0, 1, 2, 5, 6], [0, 0, 0, 1, 1]])
    assert_same(pool_windows(maps, windows.to(dtype)), pool_windows(maps, windows))


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (7,), (4, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_windows_give_no_rows(levels, dtype):
    pooled = pool_windows(random_maps(1, 2, 60, 5, dtype=dtype), torch.zeros(0, 5, dtype=torch.int64), levels)
    assert pooled.shape == (0, 2 * sum(n * n for n in levels))
    assert pooled.dtype == dtype


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 11])
@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_bins_of_windows_are_exact_on_sides_of_up_to_130_cells(n, tall):
    """With bin edges in floating point, as `torchvision.ops.roi_pool` computes them, 7 bins go wrong at 57 cells."""
    for dtype in (torch.float32, torch.float64):
        row = torch.arange(130, dtype=dtype)
        maps = torch.stack([row, -row])[None, :, None]
        windows = torch.tensor([[0, 0, 0, side, 1] for side in range(1, 131)])
        if tall:
            maps, windows = maps.mT.contiguous(), windows[:, [0, 2, 1, 4, 3]]
        pooled = pool_windows(maps, windows, (n,)).view(130, 2, n, n)
        last, first = (pooled.mT if tall else pooled)[:, :, 0].long().unbind(1)
        for side in range(1, 131):
            bins = list(zip((-first[side - 1]).tolist(), (last[side - 1] + 1).tolist(), strict=True))
            assert bins == pyramid_bins(side, n)


@pytest.mark.parametrize("levels", [(7,), (7, 3, 1), (6, 3, 2, 1)])
def test_windows_on_large_maps(levels):
    maps = random_maps(1, 2, 64, 60)
    windows = torch.tensor([[0, 0, 0, 60, 64], [0, 1, 3, 58, 60], [0, 59, 63, 60, 64], [0, 3, 0, 60, 57]])
    assert_same(pool_windows(maps, windows, levels), pool_windows_by_cutting(maps, windows, levels))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "levels"), [((9, 13), (6, 3, 2, 1)), ((9, 13), (5, 3)), ((60, 4), (7, 1))])
def test_gradient_of_windows_is_that_of_the_cut_outs(size, levels, layout):
    height, width = size
    maps = maps_without_ties(2, 2, *size).contiguous(memory_format=layout)
    windows = torch.tensor([[0, 0, 0, width, height], [1, 1, 2, 3, 8], [1, 1, 2, 3, 8], [1, 0, 1, 1, 2]])
    expected = gradient(
        lambda maps: torch.cat(
            [pool_level_by_level(maps[i : i + 1, :, t:b, x:r], levels) for i, x, t, r, b in windows.tolist()]
        ),
        maps,
    )
    assert_same(gradient(lambda maps: pool_windows(maps, windows, levels), maps), expected)


@pytest.mark.parametrize(
    "window",
    [
        [0, 2, 0, 2, 3],  # empty
        [0, 0, 3, 3, 3],
        [0, 3, 0, 2, 3],  # inside out
        [0, -1, 0, 2, 3],  # outside
        [0, 0, -1, 2, 3],
        [0, 0, 0, 6, 3],
        [0, 0, 0, 5, 5],
        [2, 0, 0, 2, 3],  # image that is not there
        [-1, 0, 0, 2, 3],
    ],
)
def test_wrong_windows_are_named(window):
    maps = torch.zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=rf"window 1 \[{str(window)[1:-1]}\].* on 2 maps of 4 x 5 cells"):
        pool_windows(maps, torch.tensor([[0, 0, 0, 5, 4], window]))


@pytest.mark.parametrize(
    ("windows", "named"),
    [
        (torch.tensor([[0.0, 0, 0, 1, 1]]), "float32"),
        (torch.tensor([[False, False, False, True, True]]), "bool"),
        (torch.tensor([0, 0, 0, 1, 1]), r"\(5,\)"),
        (torch.tensor([[0, 0, 1, 1]]), r"\(1, 4\)"),
        (torch.zeros(1, 1, 5, dtype=torch.int64), r"\(1, 1, 5\)"),
    ],
)
def test_windows_of_the_wrong_kind_are_named(windows, named):
    with pytest.raises(ValueError, match=named):
        pool_windows(torch.zeros(2, 3, 4, 5), windows)


def test_features_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4, 5\)"):
        pool_windows(torch.zeros(3, 4, 5), torch.tensor([[0, 0, 0, 1, 1]]))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (7, 11), (13, 13), (4, 10)])
def test_bins_one_by_one_are_adaptive_pooling_with_the_same_gradient(n, size):
    maps = torch.randperm(2 * 3 * size[0] * size[1]).reshape(2, 3, *size).double().requires_grad_()  # no ties
    upstream = torch.rand(2, 3, n, n, dtype=torch.float64)
    one, other = bins_one_by_one(maps, n), F.adaptive_max_pool2d(maps, n)
    assert torch.equal(one, other)
    gradients = [torch.autograd.grad(pooled, maps, upstream)[0] for pooled in (one, other)]
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
def test_deterministic_training_has_a_backward_pass_on_a_gpu():
    maps = torch.rand(4, 8, 13, 13, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        gradients = [torch.autograd.grad(SpatialPyramidPool()(maps).square().sum(), maps)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*gradients)
