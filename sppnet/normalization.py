"""Fast local response normalization, across channels (AlexNet) and within a channel (the ZF-5 of the authors' release).

Shape letters: N images, C channels, (H, W) cells of the map.

Both kinds are one formula with different windows. W sums the window around every cell:

    s = k + scale * W(x * x)        y = x * s ** -beta
    dx = dy * s ** -beta - 2 * beta * scale * x * W'(dy * x * s ** (-beta - 1))

where W' is the mirrored window: it sums over the cells whose windows contain this cell.

Left to autograd, each of the dozen steps makes a new tensor of the size of the maps, forward and again backward, and
keeps most of them: `torch.nn.LocalResponseNorm` takes longer than all convolutions of ZF-5. Here the gradient is
explicit, keeps only x and computes s again. `torch.compile` fuses it into a few loops; without a compiler it runs over
blocks of images, whose scratch memory is small and reused.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Values per block and thread: 0.5 MB in float32, so that the scratch tensors stay in the second-level cache of a core.
# Blocks of 16 MB take half as long again on idle cores, and four times as long on cores shared with data workers.
BLOCK_VALUES = 2**17

# Blocks of fewer rows than so many margins become square. A map of 343 x 458 cells and 96 channels has blocks of 3
# rows, and the rows above and below them would be two thirds more work.
_FEW_ROWS = 8

# How far the window reaches, as `F.pad` counts: cells to the left, right, top, bottom, channels before, after.
_Reach = tuple[int, int, int, int, int, int]


class LocalResponseNorm(nn.Module):
    """Normalizes across channels: x / (k + alpha / size * sum of x * x over `size` neighbouring channels) ** beta.

    (N, C, H, W), any floating dtype -> the same shape, dtype and memory format. The window of channel c is
    c - size // 2 .. c + (size - 1) // 2, cut off at the first and last channel, as in `torch.nn.LocalResponseNorm`.
    float16 and bfloat16 are computed in float32, where the square of an activation of 1000 does not overflow.

    The defaults are AlexNet's n = 5, k = 2, beta = 0.75 and alpha = 1e-4, which multiplies the sum there: 5e-4 / 5.
    arXiv:1406.4729v4 prints no constants.

    Raises ValueError for a size that is no integer from 1, for alpha or beta that are negative or not finite, and
    for k that is not positive and finite (with k = 0, zeros would give 0 / 0).
    """

    def __init__(self, size: int = 5, alpha: float = 5e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        _check_constants(size, alpha, beta)
        if not (math.isfinite(k) and k > 0):
            raise ValueError(f"k {k}: must be positive and finite")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, maps: Tensor) -> Tensor:
        reach = (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2)
        return _normalize(maps, reach, self.alpha / self.size, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class WithinChannelResponseNorm(nn.Module):
    """Normalizes within a channel: x / (1 + alpha * mean of x * x over size x size cells) ** beta.

    (N, C, H, W), any floating dtype -> the same shape, dtype and memory format. Cells beyond the border are zeros and
    count in the mean: Caffe's WITHIN_CHANNEL with its AVE pooling. float16 and bfloat16 are computed in float32.

    The defaults are those of the authors' ZF-5 (`local_size: 3, alpha: 5e-5, beta: 0.75`; Zeiler_conv5.prototxt).

    Raises ValueError for a size that is no odd integer from 1, and for alpha or beta that are negative or not finite.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        _check_constants(size, alpha, beta)
        if size % 2 == 0:
            raise ValueError(f"size {size}: must be odd, so that the window has a centre")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, maps: Tensor) -> Tensor:
        radius = self.size // 2
        reach = (radius, radius, radius, radius, 0, 0)
        return _normalize(maps, reach, self.alpha / self.size**2, self.beta, 1.0)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


def _check_constants(size: int, alpha: float, beta: float) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size {size!r}: must be an integer from 1")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} {value}: must be finite and not negative")


def _normalize(maps: Tensor, reach: _Reach, scale: float, beta: float, k: float) -> Tensor:
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(f"feature maps of shape {tuple(maps.shape)} and {maps.dtype}: must be (N, C, H, W) floats")
    return _ResponseNorm.apply(maps, reach, scale, beta, k)


class _ResponseNorm(torch.autograd.Function):
    """The formula at the top of this file, and its gradient, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, *constants: Any) -> Tensor:
        ctx.save_for_backward(maps)
        ctx.constants = constants
        return _by_blocks(lambda x: _response(x, *constants), _rows_reached(constants[0]), maps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (maps,) = ctx.saved_tensors
        margin = 2 * _rows_reached(ctx.constants[0])  # from dx to y, and from y to x
        gradient = _by_blocks(lambda x, dy: _response_gradient(x, dy, *ctx.constants), margin, maps, grad)
        return gradient, None, None, None, None


def _rows_reached(reach: _Reach) -> int:
    return max(reach[2:4])


def _by_blocks(function: Callable[..., Tensor], margin: int, maps: Tensor, *more: Tensor) -> Tensor:
    """Applies `function(maps, *more)`, on a CPU to a few images at a time; keeps dtype and memory format of `maps`.

    An image larger than a block is cut into rows, or into tiles if rows would be few, each block with the `margin`
    cells around it that reach into it.

    No blocks while compiling: the loop would be unrolled into one kernel per block. Nor where gradients are enabled,
    which in a backward pass means that it is differentiated again: results copied into place cannot be.
    """
    if maps.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_grad_enabled():
        result = function(maps, *more)
        # torch 2.11 compiles a conversion that does nothing into a gradient of zeros.
        return result if result.dtype == maps.dtype else result.to(maps.dtype)
    block_values = BLOCK_VALUES * torch.get_num_threads()
    images = max(1, block_values // max(1, maps[:1].numel()))
    rows, columns = _tile(maps, block_values, margin)
    result = torch.empty_like(maps)
    for block, *inputs in zip(*(tensor.split(images) for tensor in (result, maps, *more)), strict=True):
        for y in range(0, maps.shape[2], rows):
            for x in range(0, maps.shape[3], columns):
                top, left = max(0, y - margin), max(0, x - margin)
                cut = (..., slice(top, y + rows + margin), slice(left, x + columns + margin))
                values = function(*(tensor[cut] for tensor in inputs))[..., y - top :, x - left :]
                block[..., y : y + rows, x : x + columns].copy_(values[..., :rows, :columns])
    return result


def _tile(maps: Tensor, block_values: int, margin: int) -> tuple[int, int]:
    """Returns how many rows and columns of an image of (N, C, H, W) are worked on at once."""
    _, channels, height, width = maps.shape
    cells = max(1, block_values // max(1, channels))
    rows = max(1, cells // max(1, width))
    if rows >= min(height, _FEW_ROWS * margin) or maps.stride(1) != 1:  # channels not last: short rows are slow
        return rows, max(1, width)
    columns = min(width, math.isqrt(cells))
    return cells // columns, columns


def _response(x: Tensor, reach: _Reach, scale: float, beta: float, k: float) -> Tensor:
    """Computes y of the formula, in float32 or float64."""
    x = _at_least_float32(x)
    return x * _inverse_power(_divisor(x, reach, scale, k), beta)


def _response_gradient(x: Tensor, dy: Tensor, reach: _Reach, scale: float, beta: float, k: float) -> Tensor:
    """Computes dx of the formula, in float32 or float64."""
    x, dy = _at_least_float32(x), _at_least_float32(dy)
    left, right, top, bottom, before, after = reach
    s = _divisor(x, reach, scale, k)
    direct = dy * _inverse_power(s, beta)
    shared = _window_sum(direct * x / s, (right, left, bottom, top, after, before))
    return torch.addcmul(direct, shared, x, value=-2 * beta * scale)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _divisor(x: Tensor, reach: _Reach, scale: float, k: float) -> Tensor:
    """Computes s of the formula."""
    return _window_sum(x * x, reach).mul_(scale).add_(k)


def _inverse_power(s: Tensor, beta: float) -> Tensor:
    """Computes s ** -beta for positive s; for beta 0.75 by two square roots, less than half the work of a power."""
    if beta == 0.75:
        root = s.rsqrt()
        return root * root.sqrt()
    return s.pow(-beta)


def _window_sum(values: Tensor, reach: _Reach) -> Tensor:
    """(N, C, H, W) -> a new tensor of that shape: the sum of the window around every cell, zeros beyond the borders.

    Slices of the padded tensor are added, one axis after the other. `F.avg_pool2d` takes six times as long on
    contiguous maps, and a product with a band matrix over channels loses digits where float32 products may be rounded
    (`torch.set_float32_matmul_precision`, autocast).
    """
    if torch.compiler.is_exporting() and (radius := reach[0]):
        # One operation: slices of unknown length take torch.export and torch.onnx 5 times as long, onnxruntime 2.5.
        return F.avg_pool2d(values, 2 * radius + 1, stride=1, padding=radius) * (2 * radius + 1) ** 2
    total = F.pad(values, reach)
    for axis, margin in ((3, reach[0:2]), (2, reach[2:4]), (1, reach[4:6])):
        if any(margin):
            length, padded = values.shape[axis], total
            total = padded.narrow(axis, 0, length) + padded.narrow(axis, 1, length)
            for start in range(2, sum(margin) + 1):
                total += padded.narrow(axis, start, length)
    return total
