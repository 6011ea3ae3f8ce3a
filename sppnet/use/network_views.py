"""What a network sees of an image, and where the cells of its maps lie in it.

Letters: h and w pixels of height and width.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.backbones import Backbone
from sppnet.data.batches import to_network_input
from sppnet.data.images import crop, resize_shorter_side
from sppnet.geometry import LARGEST_SCALE, Window, cell_window, first_center, total_stride
from sppnet.network import SPPNet
from sppnet.runtime.devices import sent_to


@dataclass(frozen=True)
class NetworkView:
    """Makes what a network sees of an image: the whole image, resized, or its central square.

    An instance makes the tensors of a decoded image in loader processes: uint8 (3, h, w) -> [uint8 (h', w', 3)].

    Args:
        scale: shorter side of the image in pixels.
        crop_side: side of the square, for a network without a pyramid; None: the whole image.
    """

    scale: int
    crop_side: int | None = None

    @classmethod
    def of(cls, network: SPPNet, scale: int) -> "NetworkView":
        """Returns the view of a network at a scale. Raises ValueError for a scale that the network does not take."""
        smallest = network.input_side or network.backbone.smallest_input
        if not smallest <= scale <= LARGEST_SCALE:
            raise ValueError(f"scale={scale}: must be from {smallest} to {LARGEST_SCALE} pixels for this network")
        return cls(scale, network.input_side)

    def image(self, image: Tensor) -> Tensor:
        """Returns what the network sees: uint8 (3, h, w) -> uint8 (3, h', w')."""
        resized = resize_shorter_side(image, self.scale)
        return resized if self.crop_side is None else crop(resized, self.crop_side, "center")

    def __call__(self, image: Tensor) -> list[Tensor]:
        return [self.image(image).permute(1, 2, 0).contiguous()]

    @property
    def pixels(self) -> int:
        """The pixels of the view of a 4:3 image."""
        return 4 * self.scale**2 // 3 if self.crop_side is None else self.crop_side**2

    def __str__(self) -> str:
        whole = f"whole images at shorter side {self.scale}"
        return whole if self.crop_side is None else f"the central {self.crop_side} x {self.crop_side} pixels of {whole}"


def network_input(network: SPPNet, images: Tensor) -> Tensor:
    """Makes the input of a network on its device: uint8 (N, 3, h, w) -> float32 (N, 3, h, w)."""
    images = sent_to(images, network.fc8.weight.device)
    return to_network_input(images, network.input_mean, network.input_std)


class MapCells(NamedTuple):
    """Where the cells of a layer's maps lie in the network's view of an image, in its pixels."""

    stride: int  # from the centre of a cell to that of the next
    center: float  # of the first cell, along both sides
    window: Window  # the receptive field of the first cell; it may begin before the image
    is_receptive_field: bool  # False: the layers are not known, and the window is the square of `stride` pixels

    @classmethod
    def of(cls, network: SPPNet, layer: str) -> "MapCells":
        """Returns the cells of a layer. Raises ValueError, with the layers that have maps, for one without maps."""
        backbone = network.backbone
        if layer not in backbone.layers:
            named = f"layer={layer}: has no maps" if layer in network.layers else f"layer={layer}: no such layer"
            raise ValueError(f"{named}; the layers with maps are {', '.join(backbone.layers)}")
        if isinstance(backbone, Backbone):
            layers = backbone.footprints_to(layer)
            return cls(total_stride(layers), float(first_center(layers)), cell_window((0, 0), layers), True)

        # timm tells the stride of a model, and nothing about the layers within.
        start = math.ceil(backbone.offset - Fraction(backbone.stride - 1, 2))
        end = start + backbone.stride
        return cls(backbone.stride, float(backbone.offset), (start, start, end, end), False)

    @property
    def side(self) -> int:
        """Side of a cell's window in pixels."""
        return self.window[2] - self.window[0]

    def windows(self, cells: np.ndarray) -> np.ndarray:
        """Returns the windows of cells, int (k, 2) of (x, y): int64 (k, 4), half-open, not cut off at the image."""
        return np.asarray(self.window) + self.stride * np.tile(np.asarray(cells, np.int64), 2)

    def centers(self, cells: np.ndarray) -> np.ndarray:
        """Returns the pixels on which cells, int (k, 2) of (x, y), are centred: float64 (k, 2) of (x, y)."""
        return self.center + self.stride * np.asarray(cells, np.float64)

    def enlarged(self, values: Tensor, height: int, width: int) -> Tensor:
        """Enlarges a map to the pixels of the image: float (rows, columns) -> (height, width).

        Every cell lies where it is centred, and values are bilinear in between. Pixels beyond the outermost centres
        take the value of the nearest ones.
        """
        rows, columns = (
            ((torch.arange(pixels) - self.center) / self.stride).clamp(0, cells - 1)
            for pixels, cells in zip((height, width), values.shape, strict=True)
        )
        return _interpolated(_interpolated(values, rows).T, columns).T


def _interpolated(values: Tensor, places: Tensor) -> Tensor:
    """Interpolates the rows of (n, m) at places from 0 to n - 1: (k, m)."""
    first = places.floor().long()
    second = (first + 1).clamp(max=len(values) - 1)
    share = (places - first)[:, None]
    return values[first] * (1 - share) + values[second] * share
