"""Spatial pyramid pooling of whole feature maps and of windows on them, with the same rule for the bins.

Shape letters: N images, C channels, (H, W) cells of the map, K windows, B = sum(n * n) bins of the pyramid.

floor/ceil bins nest: where n divides m, every bin of the n x n level is a union of bins of the m x m level. So the
pyramid (6, 3, 2, 1) reads the map once, for its 6 x 6 level, and takes the others from those 36 values: the same
numbers bit for bit as four adaptive poolings, for a third of the work.
"""

from collections.abc import Callable, Iterable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.geometry import check_levels, pyramid_bins
from sppnet.runtime.devices import sent_to


class SpatialPyramidPool(nn.Module):
    """Pools feature maps of any size into vectors of fixed length: max pooling over an n x n grid of bins per level n.

    (N, C, H, W), H and W from 1, any floating dtype and memory format -> (N, C * B): level by level in the given
    order, each flattened as (channel, row, column). Each level equals `F.adaptive_max_pool2d(maps, n)` bit for bit;
    a map smaller than the level shares its cells between bins. Source: arXiv:1406.4729v4, §2.2 and Appendix A.

    Where several cells of a bin share its maximum, the gradient goes to one of them.

    Raises ValueError for levels that are empty, or not integers from 1.
    """

    def __init__(self, levels: Iterable[int] = (6, 3, 2, 1)) -> None:
        super().__init__()
        self.levels = check_levels(levels)

    @property
    def bins(self) -> int:
        """B, the number of bins of all levels."""
        return sum(n * n for n in self.levels)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or 0 in maps.shape[2:]:
            raise ValueError(f"feature maps of shape {tuple(maps.shape)}: must be (N, C, H, W) with H, W >= 1")
        return _pool_levels(self.levels, lambda n: _max_of_bins(maps, n))

    def extra_repr(self) -> str:
        return f"levels={list(self.levels)}"


def pool_windows(features: Tensor, windows: Tensor, levels: Iterable[int] = (6, 3, 2, 1)) -> Tensor:
    """Pools windows of feature maps, each as `SpatialPyramidPool` pools a whole map.

    Args:
        features: (N, C, H, W), any floating dtype.
        windows: (K, 5) integers: image index, x0, y0, x1, y1 in half-open cells of the map
            (`sppnet.geometry.window_to_cells` gives them). Better on the CPU: to check them on a GPU, the host waits.
        levels: the pyramid.

    Returns:
        (K, C * B) in the dtype of `features`: row k equals `SpatialPyramidPool(levels)` of the cut-out window bit for
        bit. Differentiable in `features`.

    Raises ValueError for windows that are not integers, empty, outside the maps, or of an image index out of range.
    """
    levels = check_levels(levels)
    check_windows(features, windows)
    # roi_pool supports float32 and float64; converting 16-bit floats to float32 and back changes no value.
    exact = features if features.dtype == torch.float64 else features.float()
    inclusive = windows - windows.new_tensor([0, 0, 0, 1, 1])
    # roi_pool starts from the lowest finite number, which loses NaN and -inf; adaptive pooling keeps them.
    finite = bool((exact > -torch.inf).all())
    pool = _pool_windows_at if finite else _pool_cut_outs
    return _pool_levels(levels, lambda n: pool(exact, inclusive, n)).to(features.dtype)


def _pool_levels(levels: tuple[int, ...], pool: Callable[[int], Tensor]) -> Tensor:
    """Pools all levels, flattens them and joins them in the given order.

    `pool(n)` returns the (N, C, n, n) bins of level n. It is called only for levels that divide no finer level; the
    others are pooled from those bins.
    """
    pooled: dict[int, Tensor] = {}
    for n in sorted(levels, reverse=True):
        finer = next((m for m in pooled if m % n == 0), None)
        pooled[n] = pool(n) if finer is None else _max_of_finer_bins(pooled[finer], n)
    return torch.cat([pooled[n].flatten(1) for n in levels], dim=1)


def _max_of_finer_bins(bins: Tensor, n: int) -> Tensor:
    """(N, C, m, m), the bins of a level that n divides -> (N, C, n, n)."""
    # One operation in exported networks instead of slices, as both sides are known.
    return F.max_pool2d(bins, bins.shape[-1] // n) if torch.compiler.is_exporting() else _max_of_bins(bins, n)


def _max_of_bins(maps: Tensor, n: int) -> Tensor:
    """(N, C, H, W) -> (N, C, n, n): the maximum of every bin of one level."""
    if torch.compiler.is_exporting():
        return bins_by_slices(maps, n)
    if maps.is_cuda and torch.are_deterministic_algorithms_enabled():
        return bins_one_by_one(maps, n)  # on a GPU, the backward pass of adaptive pooling is not deterministic
    return F.adaptive_max_pool2d(maps, n)


def bins_one_by_one(maps: Tensor, n: int) -> Tensor:
    """`F.adaptive_max_pool2d(maps, n)` by n * n maxima, whose gradients add up in a fixed order on every device."""
    rows, columns = (pyramid_bins(side, n) for side in maps.shape[2:])
    maxima = [
        maps[:, :, top:bottom, left:right].flatten(2).max(dim=2).values
        for top, bottom in rows
        for left, right in columns
    ]
    return torch.stack(maxima, dim=2).unflatten(2, (n, n))


def bins_by_slices(maps: Tensor, n: int) -> Tensor:
    """`F.adaptive_max_pool2d(maps, n)` by n slices along either axis: the pooling of exported networks.

    torch.onnx cannot export adaptive pooling of maps whose sides are not known, and AOTInductor compiles it for bins as
    large as those of the example: wrong on larger maps, without an error. Maxima of slices are right in both.
    """
    for axis in (2, 3):
        side, maxima = maps.shape[axis], []
        for i in range(n):
            # Not the ceiling of `pyramid_bins`, -(a // -n): exported, its division would round towards zero.
            start, end = i * side // n, ((i + 1) * side + n - 1) // n
            maxima.append(maps.narrow(axis, start, end - start).amax(axis))
        maps = torch.stack(maxima, axis)
    return maps


def check_windows(features: Tensor, windows: Tensor) -> None:
    """Raises ValueError for feature maps and windows that `pool_windows` does not take."""
    if windows.ndim != 2 or windows.shape[1] != 5 or windows.is_floating_point() or windows.dtype == torch.bool:
        raise ValueError(f"windows of shape {tuple(windows.shape)} and {windows.dtype}: must be (K, 5) integers")
    if features.ndim != 4:
        raise ValueError(f"feature maps of shape {tuple(features.shape)}: must be (N, C, H, W)")
    images, _, height, width = features.shape
    index, x0, y0, x1, y1 = windows.unbind(1)
    inside = (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    wrong = ~(inside & (index >= 0) & (index < images))
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"window {row} {windows[row].tolist()}: must be (image, x0, y0, x1, y1), half-open and not empty, "
            f"on {images} maps of {height} x {width} cells"
        )


def _pool_windows_at(features: Tensor, inclusive: Tensor, n: int) -> Tensor:
    """Pools one level inside windows given by their first and last cells: (K, C, n, n)."""
    # Imported here: torchvision.ops takes as long to import as torch itself, and training does without it.
    from torchvision.ops import roi_pool

    if _largest_exact_side(n, features.dtype) >= max(features.shape[2:]):
        return roi_pool(features, sent_to(inclusive.to(features.dtype), features.device), n)
    return _pool_cut_outs(features, inclusive, n)


def _pool_cut_outs(features: Tensor, inclusive: Tensor, n: int) -> Tensor:
    pooled = [
        F.adaptive_max_pool2d(features[i, :, y0 : y1 + 1, x0 : x1 + 1], n) for i, x0, y0, x1, y1 in inclusive.tolist()
    ]
    return torch.stack(pooled) if pooled else features.new_zeros(0, features.shape[1], n, n)


@cache
def _largest_exact_side(n: int, dtype: torch.dtype, limit: int = 1024) -> int:
    """Returns the largest side up to which `roi_pool`, which computes bin edges in `dtype`, uses the integer bins.

    For n <= 6 it is exact far beyond any feature map; in float32, n = 7 first differs at a side of 57 cells.
    """
    for side in range(1, limit + 1):
        step = torch.tensor(side, dtype=dtype) / n
        edges = torch.arange(n + 1) * step
        starts, ends = edges[:-1].floor().int().tolist(), edges[1:].ceil().int().tolist()
        if list(zip(starts, ends, strict=True)) != pyramid_bins(side, n):
            return side - 1
    return limit
