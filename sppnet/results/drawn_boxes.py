"""Images reduced for pages, as JPEG: thumbnails, and images with boxes."""

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes

_LEAST_SIDE = 20  # pixels of a box on the picture that has a text


class DrawnBoxes(NamedTuple):
    """Boxes to draw, the last one on top, each with a text, which may be empty, and a colour."""

    boxes: np.ndarray  # float64 (k, 4), in pixels of the image
    texts: list[str]
    colors: list[str]


def draw_boxes(image: Tensor, drawn: DrawnBoxes, *, longer_side: int = 360, font_size: int = 11) -> bytes:
    """Draws boxes on an image, uint8 (3, h, w), reduced to `longer_side` pixels, and encodes it as JPEG.

    Boxes of less than 20 pixels on the reduced image have no text, which would hide what is in them.
    """
    image, factor = _reduced(image, longer_side)
    if len(drawn.boxes):
        scaled = clip_boxes_to_image(torch.from_numpy(factor * drawn.boxes).round(), image.shape[1:])
        scaled[:, 2:] = torch.maximum(scaled[:, 2:] - 1, scaled[:, :2])  # drawn up to the last pixel that they hold
        image = _with_texts(draw_bounding_boxes(image, scaled, colors=drawn.colors, width=2), scaled, drawn, font_size)

    return _jpeg(image)


def thumbnail(image: Tensor, longer_side: int = 160) -> bytes:
    """Reduces an image, uint8 (3, h, w), to a longer side, and encodes it as JPEG. Small images keep their size."""
    return _jpeg(_reduced(image, longer_side)[0])


def _reduced(image: Tensor, longer_side: int) -> tuple[Tensor, float]:
    """Returns an image reduced to a longer side, and the factor by which it was reduced, at most 1."""
    height, width = image.shape[1:]
    factor = min(1.0, longer_side / max(height, width))
    return resize(image, [max(1, round(factor * side)) for side in (height, width)], antialias=True), factor


def _jpeg(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=85)
    return file.getvalue()


def _with_texts(image: Tensor, boxes: Tensor, drawn: DrawnBoxes, font_size: int) -> Tensor:
    """Draws the texts, white in the colour of their box, but for those that would hide a small object."""
    from matplotlib.font_manager import findfont  # takes a second

    large = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= _LEAST_SIDE
    named = [i for i, text in enumerate(drawn.texts) if text and large[i]]
    if not named:
        return image
    colors = [drawn.colors[i] for i in named]
    return draw_bounding_boxes(
        image,
        boxes[named],
        [drawn.texts[i] for i in named],
        colors,
        font=findfont("DejaVu Sans"),
        font_size=font_size,
        label_colors="white",
        label_background_colors=colors,
        fill_labels=True,
    )
