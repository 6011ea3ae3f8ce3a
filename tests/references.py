"""Slow and obvious versions of what the package computes fast."""

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from sppnet.classify.views import ViewProtocol, windows_at
from sppnet.geometry import Window, pyramid_bins, size_at_shorter_side


def pixels_by_enumeration(cell: int, footprints) -> set[int]:
    """All pixels along one side that a cell behind `footprints` sees, the padding counted as pixels too."""
    seen = {cell}
    for layer in reversed(footprints):
        seen = {i * layer.stride - layer.padding + tap for i in seen for tap in range(layer.kernel)}
    return seen


def center_by_enumeration(cell: int, footprints) -> Fraction:
    """The middle of all pixels that a cell behind `footprints` sees."""
    seen = pixels_by_enumeration(cell, footprints)
    return Fraction(min(seen) + max(seen), 2)


def cells_by_enumeration(start, end, stride, offset, cells: int) -> tuple[int, int]:
    """One axis of `window_to_cells`: look at every cell far around the map, then move what is found into it."""
    start, end, offset = Fraction(start), Fraction(end), Fraction(offset)
    centers = {cell: offset + stride * cell for cell in range(-500, 500)}
    inside = [cell for cell, center in centers.items() if start < center < end]
    if not inside:
        middle = (start + end) / 2
        nearest = min(abs(center - middle) for center in centers.values())
        inside = [min(cell for cell, center in centers.items() if abs(center - middle) == nearest)]
    clipped = [min(max(cell, 0), cells - 1) for cell in inside]
    return min(clipped), max(clipped) + 1


def pyramid_pool_by_loops(maps: Tensor, levels) -> Tensor:
    """The maximum of every bin of every level, bin by bin."""
    height, width = maps.shape[2:]
    return torch.cat(
        [
            torch.stack(
                [
                    maps[:, :, top:bottom, left:right].amax((2, 3))
                    for top, bottom in pyramid_bins(height, n)
                    for left, right in pyramid_bins(width, n)
                ],
                dim=2,
            ).flatten(1)
            for n in levels
        ],
        dim=1,
    )


def pool_windows_by_cutting(features: Tensor, windows: Tensor, levels) -> Tensor:
    """Cut every window out and pool it."""
    pooled = [
        pyramid_pool_by_loops(features[image : image + 1, :, y0:y1, x0:x1], levels)
        for image, x0, y0, x1, y1 in windows.tolist()
    ]
    return torch.cat(pooled)


def local_response_norm_reference(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Across channels: channel by channel, with the definition of `torch.nn.LocalResponseNorm`, in float64."""
    x, result = x.double(), torch.empty_like(x, dtype=torch.float64)
    for channel in range(x.shape[1]):
        first, last = channel - size // 2, channel + (size - 1) // 2
        squares = sum(x[:, i] ** 2 for i in range(max(first, 0), min(last, x.shape[1] - 1) + 1))
        result[:, channel] = x[:, channel] / (k + alpha / size * squares) ** beta
    return result


def within_channel_response_norm_reference(x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """Within a channel: cell by cell, the mean over size x size cells with zeros beyond the border, in float64."""
    x, result, radius = x.double(), torch.empty_like(x, dtype=torch.float64), size // 2
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            top, left = max(row - radius, 0), max(column - radius, 0)
            window = x[:, :, top : row + radius + 1, left : column + radius + 1]
            mean = (window**2).sum((2, 3)) / size**2
            result[:, :, row, column] = x[:, :, row, column] / (1 + alpha * mean) ** beta
    return result


class View(NamedTuple):
    """One look at an image whose shorter side is `scale` pixels. The part inside `window` is what is mirrored."""

    scale: int
    window: Window | None  # None: the whole image
    mirrored: bool


def views_of(protocol: ViewProtocol, height: int, width: int) -> list[View]:
    """All views of an image of (height, width) pixels: at every scale the windows, then the whole images."""
    sides = (False, True) if protocol.mirrored else (False,)
    windows = [
        View(scale, window, mirrored)
        for scale in protocol.scales
        for mirrored in sides
        for window in windows_at(protocol, *size_at_shorter_side(height, width, scale))
    ]
    return windows + [View(scale, None, mirrored) for scale in protocol.full_scales for mirrored in sides]


def mirrored_window(window: Window, width: int) -> Window:
    """Where a window lies in the mirror image: the smallest box around its mirrored pixels."""
    x0, y0, x1, y1 = window
    columns = [width - 1 - x for x in range(x0, x1)]
    return min(columns), y0, max(columns) + 1, y1
