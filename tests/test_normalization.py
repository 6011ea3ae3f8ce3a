"""Both normalizations against their definitions, forward and backward, in every dtype, layout and mode of use."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import local_response_norm_reference, within_channel_response_norm_reference
from sppnet import normalization
from sppnet.normalization import LocalResponseNorm, WithinChannelResponseNorm

SHAPES = [(2, 1, 7, 10), (1, 2, 1, 13), (3, 3, 11, 1), (1, 4, 1, 1), (2, 5, 10, 11), (2, 7, 13, 7), (2, 96, 7, 11)]
ACROSS = [
    {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0},
    {"size": 3, "alpha": 1e-2, "beta": 0.5, "k": 1.0},
    {"size": 4, "alpha": 1e-3, "beta": 1.0, "k": 1.0},
    {"size": 1, "alpha": 1e-3, "beta": 0.75, "k": 0.5},
    {"size": 9, "alpha": 0.0, "beta": 0.0, "k": 1.0},
]
WITHIN = [
    {"size": 3, "alpha": 5e-5, "beta": 0.75},
    {"size": 5, "alpha": 1e-2, "beta": 0.5},
    {"size": 1, "alpha": 1e-3, "beta": 1.0},
]
CASES = [
    *((LocalResponseNorm, local_response_norm_reference, constants) for constants in ACROSS),
    *((WithinChannelResponseNorm, within_channel_response_norm_reference, constants) for constants in WITHIN),
]
BOTH = pytest.mark.parametrize("layer", [LocalResponseNorm(), WithinChannelResponseNorm()], ids=["across", "within"])
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def activations(*shape: int, seed: int = 0) -> Tensor:
    """As behind a convolution on 0..255 images: signs of both kinds, of size 60, and zeros."""
    maps = 60 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(maps.abs() < 10, 0.0, maps)


def output_and_gradient(layer, maps: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    maps = maps.detach().requires_grad_()
    result = layer(maps)
    result.backward(upstream.to(result.dtype))
    return result.detach(), maps.grad


def largest_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("kind", "reference", "constants"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_equal_the_definition(kind, reference, constants, shape):
    maps, upstream = activations(*shape), activations(*shape, seed=1)
    expected = output_and_gradient(lambda x: reference(x, **constants), maps.double(), upstream.double())
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        actual = output_and_gradient(kind(**constants), maps.to(dtype), upstream.to(dtype))
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == dtype
            assert largest_error(a, e) < tolerance


@pytest.mark.parametrize("constants", ACROSS)
def test_across_channels_equals_torch(constants):
    maps, upstream = activations(2, 6, 5, 4).double(), activations(2, 6, 5, 4, seed=1).double()
    actual = output_and_gradient(LocalResponseNorm(**constants), maps, upstream)
    expected = output_and_gradient(nn.LocalResponseNorm(**constants), maps, upstream)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_the_defaults_are_those_of_the_papers():
    one = torch.full((1, 9, 5, 5), 100.0, dtype=torch.float64)
    alexnet, zeiler = LocalResponseNorm()(one)[0, 4, 2, 2], WithinChannelResponseNorm()(one)[0, 4, 2, 2]
    assert alexnet.item() == pytest.approx(100 / (2 + 1e-4 * 5 * 100**2) ** 0.75)
    assert zeiler.item() == pytest.approx(100 / (1 + 5e-5 * 100**2) ** 0.75)


@pytest.mark.parametrize(("kind", "reference", "constants"), CASES)
def test_gradients_and_second_gradients_equal_finite_differences(kind, reference, constants):
    maps = activations(2, 5, 3, 4).double().div(60).requires_grad_()
    layer = kind(**constants | {"alpha": 0.3})
    assert torch.autograd.gradcheck(layer, maps)
    assert torch.autograd.gradgradcheck(layer, maps)


@BOTH
@LAYOUTS
def test_blocks_of_images_of_rows_and_of_tiles_change_nothing(layer, layout, monkeypatch):
    maps = activations(5, 6, 7, 8).contiguous(memory_format=layout)
    upstream = activations(5, 6, 7, 8, seed=1)
    whole = output_and_gradient(layer, maps, upstream)
    for values in (1, maps[0, :, :3].numel(), 2 * maps[0].numel()):
        monkeypatch.setattr(normalization, "BLOCK_VALUES", values)
        for a, e in zip(output_and_gradient(layer, maps, upstream), whole, strict=True):
            assert torch.equal(a, e)
            assert a.is_contiguous(memory_format=layout)


@pytest.fixture
def blocks(monkeypatch):
    """(images, rows, columns) of every block that is summed over windows, in order."""
    seen, pad = [], F.pad

    def noting(values, reach):
        seen.append((values.shape[0], *values.shape[2:]))
        return pad(values, reach)

    monkeypatch.setattr(F, "pad", noting)
    return seen


@pytest.mark.parametrize(
    ("values", "images", "forward", "backward"),
    [
        (16, [1, 1, 1], [2, 3, 3, 3, 3, 2], [3, 4, 5, 5, 4, 3]),  # a row at a time
        (48, [1, 1, 1], [4, 4], [5, 5]),  # three rows
        (192, [2, 1], [6], [6]),  # two images
    ],
)
def test_a_block_holds_its_values_and_the_rows_that_reach_into_them(
    values, images, forward, backward, blocks, monkeypatch
):
    """Three images of 6 rows of 16 values: the next row counts for the result, the one behind it for the gradient."""
    monkeypatch.setattr(normalization, "BLOCK_VALUES", values // torch.get_num_threads())
    maps = activations(3, 2, 6, 8).requires_grad_()
    result = WithinChannelResponseNorm()(maps)
    assert blocks == [(count, rows, 8) for count in images for rows in forward]
    blocks.clear()
    result.sum().backward()
    assert blocks == [(count, rows, 8) for count in images for rows in backward for _ in range(2)]  # two sums


def test_where_channels_are_last_a_block_of_few_rows_is_square(blocks, monkeypatch):
    """Six rows of 8 cells in tiles of 3 x 3, with the cells around them that reach into them."""
    monkeypatch.setattr(normalization, "BLOCK_VALUES", 2 * 9 // torch.get_num_threads())
    maps = activations(1, 2, 6, 8).contiguous(memory_format=torch.channels_last)
    WithinChannelResponseNorm()(maps)
    assert blocks == [(1, 4, columns) for _ in range(2) for columns in (4, 5, 3)]


def test_across_channels_no_row_reaches_into_another(blocks, monkeypatch):
    monkeypatch.setattr(normalization, "BLOCK_VALUES", 16)
    LocalResponseNorm()(activations(1, 2, 4, 8))
    assert blocks == [(1, 1, 8)] * 4


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(layer, dtype):
    """1000 ** 2 is not finite in float16; the result is that of float32, rounded once."""
    maps, upstream = 20 * activations(2, 7, 5, 6).to(dtype), activations(2, 7, 5, 6, seed=1).to(dtype)
    assert maps.abs().max() > 1000
    actual = output_and_gradient(layer, maps, upstream)
    expected = output_and_gradient(layer, maps.float(), upstream.float())
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert torch.isfinite(a).all()
        assert torch.equal(a, e.to(dtype))


@BOTH
def test_autocast_leaves_the_dtype_alone(layer):
    maps = activations(2, 7, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(maps), layer(maps.float()))
        assert layer(maps.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer(maps), layer(maps))


@BOTH
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
def test_empty_maps_stay_empty(layer, shape):
    result, gradient = output_and_gradient(layer, torch.empty(shape), torch.empty(shape))
    assert result.shape == gradient.shape == shape


@BOTH
def test_strided_maps_and_broadcast_gradients(layer):
    """A window of larger maps, and the gradient of a sum, which has stride 0."""
    window = activations(4, 6, 9, 9)[:, ::2, 1:, ::3]
    upstream = torch.ones(()).expand(window.shape)
    actual = output_and_gradient(layer, window, upstream)
    expected = output_and_gradient(layer, window.contiguous(), upstream.contiguous())
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@BOTH
def test_the_input_is_left_alone_and_repeats_are_equal(layer):
    maps, upstream = activations(3, 7, 6, 5), activations(3, 7, 6, 5, seed=1)
    before = maps.clone(), upstream.clone()
    first, second = (output_and_gradient(layer, maps, upstream) for _ in range(2))
    assert torch.equal(maps, before[0])
    assert torch.equal(upstream, before[1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@BOTH
def test_only_the_input_is_kept_for_backward(layer):
    kept = []
    maps = activations(2, 7, 6, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(maps)
    assert [t.data_ptr() for t in kept] == [maps.data_ptr()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "layout", "backend"),
    [
        (LocalResponseNorm(), torch.channels_last, "inductor"),
        (LocalResponseNorm(), torch.contiguous_format, "aot_eager"),  # generates no code, which would take long
        (WithinChannelResponseNorm(), torch.channels_last, "aot_eager"),
        (WithinChannelResponseNorm(), torch.contiguous_format, "inductor"),
    ],
    ids=["across-nhwc", "across-nchw", "within-nhwc", "within-nchw"],
)
def test_compiled_equals_eager(layer, layout, backend):
    """In one graph (fullgraph=True raises at a break), keeping the memory format."""
    maps, upstream = activations(2, 20, 7, 9), activations(2, 20, 7, 9, seed=1)
    maps, upstream = (t.contiguous(memory_format=layout) for t in (maps, upstream))
    torch.compiler.reset()
    compiled = output_and_gradient(torch.compile(layer, backend=backend, fullgraph=True), maps, upstream)
    for a, e in zip(compiled, output_and_gradient(layer, maps, upstream), strict=True):
        assert a.is_contiguous(memory_format=layout)
        assert largest_error(a, e.double()) < 1e-6


@pytest.mark.slow
@BOTH
def test_compiling_keeps_half_precision(layer):
    maps, upstream = activations(2, 7, 5, 6).bfloat16(), activations(2, 7, 5, 6, seed=1).bfloat16()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)  # no code is generated, which would take long
    actual, expected = (output_and_gradient(which, maps, upstream) for which in (compiled, layer))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, e)


@pytest.mark.parametrize("kind", [LocalResponseNorm, WithinChannelResponseNorm])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("size", value) for value in (0, -1, 2.0, True, "3")),
        *((name, value) for name in ("alpha", "beta") for value in (-1e-9, float("nan"), float("inf"))),
    ],
)
def test_wrong_constants_are_named(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        kind(**{name: value})


@pytest.mark.parametrize("k", [0, -1.0, float("nan"), float("inf")])
def test_k_must_be_positive(k):
    with pytest.raises(ValueError, match=f"k {k}"):
        LocalResponseNorm(k=k)


def test_a_window_within_a_channel_must_be_odd():
    with pytest.raises(ValueError, match="size 4: must be odd"):
        WithinChannelResponseNorm(size=4)


@BOTH
@pytest.mark.parametrize("maps", [torch.ones(3, 4, 5), torch.ones(1, 2, 3, 4, dtype=torch.int64)])
def test_wrong_maps_are_named(layer, maps):
    with pytest.raises(ValueError, match=r"feature maps of shape \(.*torch\."):
        layer(maps)


def test_repr_shows_the_constants():
    assert repr(LocalResponseNorm()) == "LocalResponseNorm(size=5, alpha=0.0005, beta=0.75, k=2.0)"
    assert repr(WithinChannelResponseNorm()) == "WithinChannelResponseNorm(size=3, alpha=5e-05, beta=0.75)"
