"""Pictures of what a network responds to and of what speaks for a class, as JPEG."""

import math

import numpy as np
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from sppnet.results.drawn_boxes import DrawnBoxes, draw_boxes
from sppnet.results.heat_maps import heat_map
from sppnet.use.network_views import MapCells

_FIELD_COLOR = "#ffd400"
_WINDOW_COLORS = ("#b34700", "#0072b2", "#117733")  # white text can be read on them
_DOT = 3  # pixels from the centre of a dot to its sides
_SQUARE_SIDE = 220  # pixels of a cropped square on the page


def response_pictures(image: Tensor, cell: np.ndarray, cells: MapCells) -> list[bytes]:
    """Draws a response as in arXiv:1406.4729v4, Figure 2: the square that the filter responds to, and the whole image.

    Args:
        image: uint8 (3, h, w), what the network sees.
        cell: int (2,), x and y of the cell with the response.
        cells: of the layer.

    Returns the square around the cell, of the size of the receptive field but at most half of the shorter side, and the
    image with the receptive field and its centre.
    """
    x0, y0, x1, y1 = square_around(cells.centers(cell[None])[0], cells.side, image.shape[1], image.shape[2])
    square = resize(image[:, y0:y1, x0:x1], [_SQUARE_SIDE, _SQUARE_SIDE], antialias=True)
    nothing = DrawnBoxes(np.zeros((0, 4)), [], [])
    return [draw_boxes(square, nothing), fields_picture(image, cell[None], cells, [""], [_FIELD_COLOR], 260)]


def square_around(center: np.ndarray, side: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Returns a square (x0, y0, x1, y1) inside an image, around a pixel (x, y) or as near to it as fits.

    It has `side` pixels, but at most half of the shorter side of the image, and at least one.
    """
    side = max(1, min(side, min(height, width) // 2))
    x0, y0 = (
        min(max(math.floor(float(place) - side / 2 + 1), 0), pixels - side)
        for place, pixels in zip(center, (width, height), strict=True)
    )
    return x0, y0, x0 + side, y0 + side


def fields_picture(
    image: Tensor, found: np.ndarray, cells: MapCells, texts: list[str], colors: list[str], longer_side: int = 520
) -> bytes:
    """Draws the windows of cells and their centres on an image, the first one on top.

    Args:
        image: uint8 (3, h, w), what the network sees.
        found: int (k, 2), x and y of the cells.
        cells: of the layer.
        texts, colors: of the windows.
        longer_side: of the picture in pixels.
    """
    boxes = np.concatenate([cells.windows(found)[::-1], _dots(cells.centers(found)[::-1])])
    drawn = DrawnBoxes(boxes, [*texts[::-1], *[""] * len(found)], [*colors[::-1], *colors[::-1]])
    return draw_boxes(image, drawn, longer_side=longer_side, font_size=15)


def strongest_windows_picture(image: Tensor, found: np.ndarray, cells: MapCells) -> bytes:
    """Draws the strongest windows on an image, uint8 (3, h, w), numbered from 1."""
    count = len(found)
    texts, colors = [str(i + 1) for i in range(count)], [_WINDOW_COLORS[i % 3] for i in range(count)]
    return fields_picture(image, found, cells, texts, colors)


def map_picture(
    image: Tensor, values: Tensor, cells: MapCells, *, longer_side: int = 520, marks_strongest: bool = False
) -> bytes:
    """Lays a map over an image as colours.

    Args:
        image: uint8 (3, h, w), what the network sees.
        values: float (rows, columns), a value per cell.
        cells: of the layer.
        longer_side: of the picture in pixels.
        marks_strongest: whether a dot marks the cell with the largest value.
    """
    shown = heat_map(image, cells.enlarged(values, *image.shape[1:]))
    strongest = np.array([divmod(int(values.argmax()), values.shape[1])[::-1]] * marks_strongest).reshape(-1, 2)
    dots = DrawnBoxes(_dots(cells.centers(strongest)), [""] * len(strongest), ["#000000"] * len(strongest))
    return draw_boxes(shown, dots, longer_side=longer_side)


def _dots(centers: np.ndarray) -> np.ndarray:
    """Returns small boxes around pixels, float (k, 2) of (x, y): float64 (k, 4)."""
    return np.tile(centers, 2) + np.array([-_DOT, -_DOT, _DOT + 1, _DOT + 1])
