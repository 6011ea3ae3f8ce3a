"""Windows of an image, pooled from its feature maps: pixels -> cells -> pooled vectors.

Testing with many views asks for many windows of one image, detection for thousands. Its maps are computed once, windows
that cover the same cells are pooled once, and the pooled vectors are consumed in chunks to bound the memory.

Letters: N images of equal size, C channels, (H, W) cells of the map, K windows, B bins of the pyramid, U different
bins.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from sppnet.geometry import check_levels, crop_to_cells, windows_to_cells
from sppnet.network import SPPNet
from sppnet.pyramid import check_windows, pool_windows
from sppnet.runtime.devices import sent_to

MAX_POOLED_NUMBERS = 1 << 25  # of one chunk: 128 MiB as float32

# Windows of one map times its channels, from which `pool_by_bins` is faster than `pool_windows`. It was from 1 to 4
# windows on with 256 channels, from 16 to 32 with 64, and from 80 with 26. `sppnet benchmark detection` measures it.
MANY_WINDOW_CHANNELS = 2048

# Numbers that are worked on at once, because they stay in the caches of a core meanwhile.
_NUMBERS_OF_MAXIMA = 1 << 16
_NUMBERS_OF_LEVELS = 1 << 19


def mirrored_windows(windows: np.ndarray, width: int) -> np.ndarray:
    """Where windows (K, 4) of an image of `width` pixels lie in its mirror image."""
    x0, y0, x1, y1 = windows.T
    return np.stack([width - x1, y0, width - x0, y1], axis=1)


def pool_image_windows(
    network: SPPNet,
    maps: Tensor,
    windows: np.ndarray,
    head: Callable[[Tensor], Tensor],
    *,
    crop_side: int | None = None,
) -> Tensor:
    """Pools windows from the maps of whole images, and applies `head` to the pooled vectors.

    Args:
        network: its backbone made `maps`, and its pyramid pools them.
        maps: (N, C, H, W).
        windows: (K, 4) x0, y0, x1, y1 in pixels of the images, the same for all N.
        head: pooled vectors (M, C * B) -> (M, D), row by row; called for chunks of at most MAX_POOLED_NUMBERS numbers.
        crop_side: the windows stand for crops of this side in pixels, and take as many cells as the map of such a crop
            has (`crop_to_cells`). None: they take the cells whose centres lie inside them (`windows_to_cells`).

    Returns:
        (N, K, D).

    Raises ValueError for windows that are inside out or not finite.
    """
    cells = _cells(network, windows, (maps.shape[2], maps.shape[3]), crop_side)
    different, place = np.unique(cells, axis=0, return_inverse=True)

    images = torch.arange(len(maps)).repeat_interleave(len(different))
    rows = torch.cat([images[:, None], torch.from_numpy(different).repeat(len(maps), 1)], dim=1)
    rows_per_chunk = max(1, MAX_POOLED_NUMBERS // network.pooled_length)
    levels = network.pyramid.levels
    results = torch.cat([head(pool_windows(maps, chunk, levels)) for chunk in rows.split(rows_per_chunk)])

    return results.unflatten(0, (len(maps), -1))[:, sent_to(torch.from_numpy(place.reshape(-1)), maps.device)]


def _cells(network: SPPNet, windows: np.ndarray, map_size: tuple[int, int], crop_side: int | None) -> np.ndarray:
    """int64 (K, 4): the cells of every window."""
    backbone = network.backbone
    if crop_side is None:
        return windows_to_cells(windows, backbone.stride, backbone.offset, map_size)
    side = backbone.map_side(crop_side)
    return np.array(
        [crop_to_cells(tuple(window), backbone.stride, (side, side), map_size) for window in windows.tolist()]
    )


def pool_many_windows(maps: Tensor, cells: np.ndarray, levels: Iterable[int] = (6, 3, 2, 1)) -> Tensor:
    """Pools many windows of one map: the same numbers as `pool_windows`, by `pool_by_bins` where that is faster.

    Args:
        maps: (1, C, H, W), any floating dtype and memory format.
        cells: int64 (K, 4), x0, y0, x1, y1 in half-open cells of the map.
        levels: the pyramid.

    Returns:
        (K, C * B) in the dtype and on the device of `maps`, not differentiable.

    Raises ValueError for several maps, and as `pool_windows` does.
    """
    rows = _rows_of_one_map(maps, cells)
    if maps.device.type == "cpu" and len(cells) * maps.shape[1] >= MANY_WINDOW_CHANNELS:
        return pool_by_bins(maps, cells, levels)
    with torch.no_grad():
        return pool_windows(maps, rows, levels)


@torch.no_grad()
def pool_by_bins(maps: Tensor, cells: np.ndarray, levels: Iterable[int] = (6, 3, 2, 1)) -> Tensor:
    """Pools windows of one map on the CPU, every different bin once.

    Bins of different windows are often the same, and large ones overlap. So every different bin of the finest level is
    pooled once, as the maximum of four overlapping blocks whose sides are powers of 2 (a range-maximum table in two
    dimensions), whatever its size. The windows gather their bins, and coarser levels are pooled from these.

    Args:
        maps, levels: as `pool_many_windows` takes them.
        cells: as well. Sorted windows share more bins.

    Returns:
        As `pool_many_windows`. Beside it, the different bins of at most MAX_POOLED_NUMBERS numbers and a few copies of
        the map are in memory, whatever K.

    Raises ValueError for several maps, and as `pool_windows` does.
    """
    levels = check_levels(levels)
    check_windows(maps, _rows_of_one_map(maps, cells))

    cells, numbers = cells.astype(np.int64, copy=False), maps.shape[1] * sum(n * n for n in levels)
    grid = maps[0].permute(1, 2, 0).contiguous()
    result = maps.new_empty(len(cells), numbers)
    at_once = max(1, MAX_POOLED_NUMBERS // numbers)
    for start in range(0, len(cells), at_once):
        part = slice(start, start + at_once)
        _pool_part(grid, cells[part], levels, result[part])
    return result


def _rows_of_one_map(maps: Tensor, cells: np.ndarray) -> Tensor:
    """Returns windows (K, 4) of one map as `pool_windows` takes them: (K, 5). Raises ValueError for several maps."""
    if maps.ndim != 4 or len(maps) != 1:
        raise ValueError(f"feature maps of shape {tuple(maps.shape)}: must be (1, C, H, W)")
    return torch.from_numpy(np.insert(cells, 0, 0, axis=1))


def _pool_part(grid: Tensor, cells: np.ndarray, levels: tuple[int, ...], result: Tensor) -> None:
    """Pools windows of the map `grid` (H, W, C) into the rows of `result`."""
    descending, channels = sorted(set(levels), reverse=True), grid.shape[2]
    # From the fewest bins that hold a level exactly; None: from the map.
    finer = {n: min((m for m in descending if m > n and m % n == 0), default=None) for n in descending}
    bins = {n: _different_bins(cells, n) for n in descending if finer[n] is None}
    maxima = {n: _maxima_of_boxes(grid, boxes) for n, (boxes, _) in bins.items()}

    at_once = max(1, _NUMBERS_OF_LEVELS // result.shape[1])
    for start in range(0, len(cells), at_once):
        part = slice(start, start + at_once)
        pooled: dict[int, Tensor] = {}
        for n in descending:
            if (m := finer[n]) is not None:
                pooled[n] = _coarser(pooled[m], n)
                continue
            places = bins[n][1][part]
            pooled[n] = maxima[n].index_select(0, places.flatten()).view(len(places), n, n, channels)
        torch.cat([pooled[n].permute(0, 3, 1, 2).flatten(1) for n in levels], dim=1, out=result[part])


def _coarser(bins: Tensor, n: int) -> Tensor:
    """Pools a level from a finer one, (K, m, m, C) -> (K, n, n, C) where n divides m. Faster than adaptive pooling."""
    step = bins.shape[1] // n
    rows = reduce(torch.maximum, [bins[:, i::step] for i in range(step)])
    return reduce(torch.maximum, [rows[:, :, i::step] for i in range(step)])


def _different_bins(cells: np.ndarray, n: int) -> tuple[np.ndarray, Tensor]:
    """Finds the different bins of one level in many windows.

    Returns:
        boxes: int64 (U, 4), x0, y0, x1, y1 in half-open cells, in order of `_powers`.
        places: int64 (K, n * n), the row in `boxes` of every bin.
    """
    x0, y0, x1, y1 = cells.T[:, :, None]
    start, end = np.arange(n), np.arange(1, n + 1)
    # (K, n) each: floor and ceil, as `pyramid_bins` has them.
    left, right = x0 + start * (x1 - x0) // n, x0 - (-end * (x1 - x0) // n)
    top, bottom = y0 + start * (y1 - y0) // n, y0 - (-end * (y1 - y0) // n)

    # One number per bin is sorted many times as fast as rows.
    limit = int(cells.max(initial=0)) + 1
    columns, rows = left * limit + right, top * limit + bottom
    numbers = rows[:, :, None] * limit**2 + columns[:, None]
    different, places = np.unique(numbers, return_inverse=True)
    rows, columns = np.divmod(different, limit**2)
    boxes = np.stack([columns // limit, rows // limit, columns % limit, rows % limit], axis=1)

    order = np.lexsort(_powers(boxes).T)
    new_places = np.empty_like(order)
    new_places[order] = np.arange(len(order))
    return boxes[order], torch.from_numpy(new_places[places].reshape(len(cells), -1))


def _powers(boxes: np.ndarray) -> np.ndarray:
    """(U, 4) -> int (U, 2): i and j of the largest block of 2**i columns and 2**j rows that fits into each box."""
    return np.frexp(boxes[:, 2:] - boxes[:, :2])[1] - 1


def _maxima_of_boxes(grid: Tensor, boxes: np.ndarray) -> Tensor:
    """Computes the maximum of the map (H, W, C) in each box of (U, 4), which are in order of `_powers`: (U, C)."""
    maxima = grid.new_empty(len(boxes), grid.shape[2])
    powers = _powers(boxes)
    starts = np.flatnonzero(np.diff(powers, axis=0, prepend=-1).any(axis=1)).tolist()
    ends = [*starts[1:], len(boxes)]
    blocks = _block_maxima(grid, [tuple(powers[start].tolist()) for start in starts])
    for start, end, (block, width, height) in zip(starts, ends, blocks, strict=True):
        x0, y0, x1, y1 = boxes[start:end].T
        corners = [(y0, x0), (y0, x1 - width), (y1 - height, x0), (y1 - height, x1 - width)]
        rows = [torch.from_numpy(y * block.shape[1] + x) for y, x in corners]
        _maxima_of_rows(block.flatten(0, 1), rows, maxima[start:end])
    return maxima


def _block_maxima(grid: Tensor, powers: list[tuple[int, int]]) -> Iterator[tuple[Tensor, int, int]]:
    """Yields, for each pair of `_powers` in order, the maxima of all blocks of this size, and its width and height."""
    tall, block, width, height = grid, grid, 1, 1
    for i, j in powers:
        while height < 1 << j:
            tall = torch.maximum(tall[:-height], tall[height:])
            height, block, width = 2 * height, tall, 1
        while width < 1 << i:
            block = torch.maximum(block[:, :-width], block[:, width:])
            width *= 2
        yield block, width, height


def _maxima_of_rows(table: Tensor, rows: list[Tensor], result: Tensor) -> None:
    """result[u] = the maximum of table[row[u]] over `rows`: (T, C) -> (U, C)."""
    at_once = max(1, _NUMBERS_OF_MAXIMA // table.shape[1])
    for start in range(0, len(result), at_once):
        part = slice(start, start + at_once)
        torch.index_select(table, 0, rows[0][part], out=result[part])
        for other in rows[1:]:
            torch.maximum(result[part], table.index_select(0, other[part]), out=result[part])
