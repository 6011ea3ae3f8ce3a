"""Exact geometry of images, networks and pyramids: sides, crops, pyramid bins, image windows on feature maps.

Pooling, training crops and views all take their positions and cells from here. Pixels and cells are counted
from 0; boxes are half-open (x0, y0, x1, y1), sizes are (height, width).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels or cells, half-open

# Side in pixels of the crops that the paper's networks are trained on and tested with (arXiv:1406.4729v4, §3.1).
CROP_SIDE = 224

# Where a window lies in the image: (vertical, horizontal), each 0 at the start, 1 in the middle, 2 at the end. The
# middles of the sides complete the nine positions, 18 with mirrors, of arXiv:1406.4729v4, §3.1.5.
POSITIONS = {
    "center": (1, 1),
    "top_left": (0, 0),
    "top_right": (0, 2),
    "bottom_left": (2, 0),
    "bottom_right": (2, 2),
    "top": (0, 1),
    "bottom": (2, 1),
    "left": (1, 0),
    "right": (1, 2),
}

# "The center or the four corners from the entire image" (arXiv:1406.4729v4, §3.1), not of its central square: training
# draws one of them, testing with 10 views takes all, each also mirrored.
CROP_POSITIONS = ("center", "top_left", "top_right", "bottom_left", "bottom_right")

# Images that are longer than this are cut to it. A file of 3 x 2000 pixels would grow to 256 x 170,667: 131 MB, and
# more than any network can hold where whole images are tested.
LONGEST_ASPECT = 16

# The largest shorter side to which images are resized. At this scale an image of 16:1 has 268 megapixels.
LARGEST_SCALE = 4096


def size_at_shorter_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns the (height, width) of an image resized to shorter side `side`, all in pixels.

    The aspect is kept, after images longer than LONGEST_ASPECT are cut to that (`cut_to_longest_aspect`); the longer
    side is rounded to the nearest pixel, half up.
    """
    height, width = cut_to_longest_aspect(height, width)
    shorter = min(height, width)
    return (2 * height * side + shorter) // (2 * shorter), (2 * width * side + shorter) // (2 * shorter)


def cut_to_longest_aspect(height: int, width: int) -> tuple[int, int]:
    """Returns the (height, width) of an image whose longer side is cut to LONGEST_ASPECT times the shorter one."""
    longest = LONGEST_ASPECT * min(height, width)
    return min(height, longest), min(width, longest)


def window_at(position: str, side: int, height: int, width: int) -> Window:
    """Returns the square window of `side` pixels at one of POSITIONS in an image of (height, width) pixels.

    In the middle, half pixels are rounded down.

    Raises ValueError for another position, and where the image is smaller than the window.
    """
    if position not in POSITIONS:
        raise ValueError(f"position={position!r}: must be one of {', '.join(POSITIONS)}")
    if min(height, width) < side:
        raise ValueError(f"an image of {height}x{width} pixels is smaller than the crop of {side}x{side}")
    vertical, horizontal = POSITIONS[position]
    top, left = (height - side) * vertical // 2, (width - side) * horizontal // 2
    return left, top, left + side, top + side


@dataclass(frozen=True)
class Footprint:
    """The window that a convolution or pooling layer slides along one side: kernel, stride, padding in cells."""

    kernel: int
    stride: int = 1
    padding: int = 0


def side_lengths(side: int, footprints: Iterable[Footprint]) -> list[int]:
    """Returns the side of the feature map after every layer, for an input of `side` pixels.

    floor((side + 2 * padding - kernel) / stride) + 1 for convolution and pooling alike (arXiv:1406.4729v4,
    Table 1 holds in floor mode with the paddings of `sppnet.backbones`). A side below 1 means that the input
    is too small; it is reported as 0 from that layer on.
    """
    sides = []
    for layer in footprints:
        span = side + 2 * layer.padding - layer.kernel
        side = span // layer.stride + 1 if span >= 0 and side > 0 else 0
        sides.append(side)
    return sides


def smallest_input(footprints: Sequence[Footprint]) -> int:
    """The smallest side in pixels whose feature map has at least one cell."""
    side = 1
    for layer in reversed(footprints):
        side = max(1, (side - 1) * layer.stride + layer.kernel - 2 * layer.padding)
    return side


def total_stride(footprints: Iterable[Footprint]) -> int:
    """Pixels from the centre of one cell to the centre of the next."""
    stride = 1
    for layer in footprints:
        stride *= layer.stride
    return stride


def first_center(footprints: Iterable[Footprint]) -> int | Fraction:
    """The pixel, counted from 0, on which the first cell's receptive field is centred.

    0 when every padding is floor(kernel / 2) and every kernel odd (arXiv:1406.4729v4, Appendix A). Exact: an int,
    or a Fraction where an even kernel centres cells between pixels.
    """
    center, stride = Fraction(0), 1
    for layer in footprints:
        center += (Fraction(layer.kernel - 1, 2) - layer.padding) * stride
        stride *= layer.stride
    return int(center) if center.denominator == 1 else center


def receptive_field(footprints: Iterable[Footprint]) -> int:
    """Returns the side in pixels of the receptive field: the window that one cell behind all of `footprints` sees.

    Without any layer it is 1. ZF-5's convolutions and poolings make it 7, 11, 27, 43, 75, 107 and 139.
    """
    side, stride = 1, 1
    for layer in footprints:
        side += (layer.kernel - 1) * stride
        stride *= layer.stride
    return side


def cell_window(cell: tuple[int, int], footprints: Sequence[Footprint]) -> Window:
    """Returns the window of pixels that a cell sees, its receptive field, before it is cut off at the image's borders.

    Args:
        cell: (x, y), the column and the row of the cell on its map.
        footprints: of all layers up to that map.

    Returns:
        (x0, y0, x1, y1), half-open, around `first_center` + cell * `total_stride`. Pixels below 0 or beyond the image
        are padding. Near the borders a cell sees less than that: nothing of what other cells would see in the padding.
    """
    stride, start = 1, 0
    for layer in footprints:
        start -= layer.padding * stride
        stride *= layer.stride
    side = receptive_field(footprints)
    x0, y0 = (start + place * stride for place in cell)
    return x0, y0, x0 + side, y0 + side


def check_levels(levels: Iterable[int]) -> tuple[int, ...]:
    """Returns pyramid levels as a tuple; each is the n of an n x n grid of bins.

    Raises ValueError for levels that are empty, or not integers from 1.
    """
    if isinstance(levels, (str, bytes)) or not isinstance(levels, Iterable):
        raise ValueError(f"levels={levels!r}: must be a list of integers from 1, such as [6, 3, 2, 1]")
    checked = tuple(levels)
    if not checked:
        raise ValueError("levels=[]: a pyramid needs at least one level, such as [6, 3, 2, 1]")
    for level in checked:
        if isinstance(level, bool) or not isinstance(level, int) or level < 1:
            raise ValueError(f"levels={list(checked)}: level {level!r} must be an integer from 1")
    return checked


def pyramid_bins(side: int, n: int) -> list[tuple[int, int]]:
    """Returns the `n` bins along a side of `side` cells: (start, end), half-open.

    Bin i is [floor(i * side / n), ceil((i + 1) * side / n)): arXiv:1406.4729v4, Appendix A, "Implementation of
    Pooling Bins". Bins overlap where n does not divide side, and share cells where n > side; none is empty.

    Raises ValueError for a side or n below 1.
    """
    if side < 1 or n < 1:
        raise ValueError(f"pyramid_bins(side={side}, n={n}): both must be at least 1")
    return [(i * side // n, -((i + 1) * -side // n)) for i in range(n)]


def window_to_cells(
    window: tuple[float, float, float, float],
    stride: int,
    offset: float | Fraction,
    map_size: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Maps an image window to the cells of a feature map.

    Args:
        window: (x0, y0, x1, y1) in pixels of the image that the map was computed from, x0 <= x1 and y0 <= y1.
        stride: pixels between the centres of neighbouring cells.
        offset: pixel on which the first cell is centred (`first_center`).
        map_size: (height, width) of the map in cells.

    Returns:
        (x0, y0, x1, y1): half-open cells, at least one in each direction, all inside the map. They are the cells
        whose centres lie strictly inside the window (arXiv:1406.4729v4, Appendix A: floor(x / S) + 1 to
        ceil(x / S) - 1). A window that holds no centre takes the cell nearest to its middle, the left or upper
        of two equally near ones; what lies outside the map is moved to its border.

    Raises ValueError for an inside-out or endless window, a stride below 1 or a map without cells.
    """
    x0, y0, x1, y1 = window
    height, width = map_size
    if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):
        raise ValueError(f"window={tuple(window)}: must be finite (x0, y0, x1, y1), x0 <= x1 and y0 <= y1")
    if stride < 1 or height < 1 or width < 1:
        raise ValueError(f"stride={stride}, map_size={tuple(map_size)}: all must be at least 1")
    left, right = _cells_inside(x0, x1, stride, offset, width)
    top, bottom = _cells_inside(y0, y1, stride, offset, height)
    return left, top, right, bottom


def windows_to_cells(
    windows: np.ndarray, stride: int, offset: float | Fraction, map_size: tuple[int, int]
) -> np.ndarray:
    """Maps many image windows to cells at once: numbers (K, 4) -> int64 (K, 4).

    Arguments and cells are those of `window_to_cells`. Computed in float64, which is exact for offsets that are
    multiples of 1/2, as those of all networks are, and coordinates below 2 ** 50.

    Raises ValueError as `window_to_cells` does, naming the first wrong window.
    """
    boxes = np.asarray(windows, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"windows of shape {boxes.shape}: must be (K, 4)")
    if stride < 1 or min(map_size) < 1:
        raise ValueError(f"stride={stride}, map_size={tuple(map_size)}: all must be at least 1")
    starts, ends = boxes[:, :2], boxes[:, 2:]
    wrong = ~(np.isfinite(boxes).all(axis=1) & (starts <= ends).all(axis=1))
    if wrong.any():
        window = tuple(boxes[wrong.argmax()].tolist())
        raise ValueError(f"window={window}: must be finite (x0, y0, x1, y1), x0 <= x1 and y0 <= y1")

    # The first and last cell whose centre is inside; where there is none, the cell nearest to the middle.
    offset = float(offset)
    first = (starts - offset) // stride + 1
    last = -((offset - ends) // stride) - 1
    nearest = -((stride + 2 * offset - starts - ends) // (2 * stride))
    empty = first > last
    first, last = np.where(empty, nearest, first), np.where(empty, nearest, last)

    cells = np.array(map_size[::-1]) - 1
    return np.hstack([first.clip(0, cells), last.clip(0, cells) + 1]).astype(np.int64)


def crop_to_cells(
    window: tuple[int, int, int, int], stride: int, crop_size: tuple[int, int], map_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Maps a crop to the cells of the whole image's feature map that replace the map of the crop.

    They are as many cells as the crop's own map has, from the cell whose centre is nearest to that of the crop's first
    cell: a crop that starts at pixel x has its first cell at x + offset, the map has cell i at stride * i + offset, so
    i = round(x / stride), whatever the offset. `window_to_cells` counts centres instead, which gives a 224 window at
    the border of ZF-5's map 14 cells where the crop has 13, unless every padding is floor(kernel / 2).

    Args:
        window: (x0, y0, x1, y1) in pixels of the image that the map was computed from, inside that image.
        stride: pixels between the centres of neighbouring cells.
        crop_size: (height, width) in cells of the map that the network gives for the crop itself.
        map_size: (height, width) of the whole image's map in cells.

    Returns:
        (x0, y0, x1, y1): half-open cells, all inside the map; halves of a cell are rounded up, and a window that would
        end beyond the map is moved to its border.

    Raises ValueError for a stride below 1, and sizes below 1.
    """
    if stride < 1 or min(*crop_size, *map_size) < 1:
        raise ValueError(
            f"stride={stride}, crop_size={tuple(crop_size)}, map_size={tuple(map_size)}: all must be at least 1"
        )
    left, right = _cells_of_crop(window[0], stride, crop_size[1], map_size[1])
    top, bottom = _cells_of_crop(window[1], stride, crop_size[0], map_size[0])
    return left, top, right, bottom


def _cells_of_crop(start: int, stride: int, crop_cells: int, cells: int) -> tuple[int, int]:
    count = min(crop_cells, cells)
    first = min(max((2 * start + stride) // (2 * stride), 0), cells - count)
    return first, first + count


def _cells_inside(start: float, end: float, stride: int, offset: float | Fraction, cells: int) -> tuple[int, int]:
    first = (start - offset) // stride + 1
    last = -((offset - end) // stride) - 1
    if first > last:
        first = last = -((stride + 2 * offset - start - end) // (2 * stride))
    first, last = (min(max(int(cell), 0), cells - 1) for cell in (first, last))
    return first, last + 1
