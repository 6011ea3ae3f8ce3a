"""Backbones: the networks of Table 1 of arXiv:1406.4729v4 as data, and any timm model.

A backbone maps images (N, 3, H, W) to feature maps (N, channels, h, w) and has

    channels        filters of its last convolution
    stride          pixels between the centres of neighbouring cells
    offset          pixel on which the first cell is centred, counted from 0
    smallest_input  smallest side in pixels that still gives a cell
    map_side(side)  cells along one side of the map of an image of that side
    layers          names of the layers that `layer_outputs(images, layers)` can return
    options         plain values: `build_backbone(**options)` builds the same backbone
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.geometry import Footprint, first_center, side_lengths, smallest_input, total_stride
from sppnet.normalization import LocalResponseNorm, WithinChannelResponseNorm
from sppnet.runtime.names import check_names
from sppnet.timm_backbone import TimmBackbone


@dataclass(frozen=True)
class Conv:
    """A convolution followed by a ReLU."""

    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Pool:
    """A max pooling."""

    kernel: int
    stride: int


@dataclass(frozen=True)
class Norm:
    """A local response normalization."""


# Table 1. The paper prints no paddings; these give its map sizes in floor mode: 55, 27, 13 (ZF-5, Convnet*-5) and
# 36, 18 (Overfeat) at 224, and 10 x 10 at 180 as §2.3 says of ZF-5. Norm before Pool as in the authors' ZF-5 release,
# after it where Table 1 says so (Overfeat). The pyramid replaces the pooling after the last convolution.
ZF5 = (
    *(Conv(96, kernel=7, stride=2, padding=2), Norm(), Pool(3, 2)),
    *(Conv(256, kernel=5, stride=2, padding=1), Norm(), Pool(3, 2)),
    Conv(384, kernel=3, padding=1),
    Conv(384, kernel=3, padding=1),
    Conv(256, kernel=3, padding=1),
)
CONVNET5 = (
    *(Conv(96, kernel=11, stride=4, padding=2), Norm()),
    *(Conv(256, kernel=5, padding=2), Norm(), Pool(3, 2)),
    *(Conv(384, kernel=3, padding=1), Pool(3, 2)),
    Conv(384, kernel=3, padding=1),
    Conv(256, kernel=3, padding=1),
)
OVERFEAT5 = (
    *(Conv(96, kernel=7, stride=2), Pool(3, 3), Norm()),
    *(Conv(256, kernel=5, padding=2), Pool(2, 2)),
    *(3 * (Conv(512, kernel=3, padding=1),)),
)
OVERFEAT7 = (*OVERFEAT5, *(2 * (Conv(512, kernel=3, padding=1),)))

_MAX_WIDTH = 8  # at which Overfeat-7, the largest, has 720 million parameters (2.9 GB)

NORMALIZATIONS: dict[str, Callable[[], nn.Module]] = {
    "within_channel": WithinChannelResponseNorm,
    "across_channels": LocalResponseNorm,
    "none": nn.Identity,
}


class Convolution(nn.Conv2d):
    """A convolution followed by a ReLU; the paper gives both one name (conv1, ...)."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(super().forward(maps), inplace=True)


class Backbone(nn.Sequential):
    """A network of Table 1, up to its last convolution.

    Layers are named conv1, norm1, pool1, conv2, ... The output of convN is taken after its ReLU.

    Args:
        architecture: key of this network in BACKBONES.
        table: its layers.
        width: factor on the filters of every layer, above 0, at most _MAX_WIDTH. 1 is the paper's.
        normalization: "within_channel", "across_channels" or "none".
        aligned: True builds what `aligned()` returns.

    Raises ValueError for a width out of range or an unknown normalization.
    """

    def __init__(
        self,
        architecture: str,
        table: tuple[Conv | Pool | Norm, ...],
        width: float,
        normalization: str,
        aligned: bool = False,
    ) -> None:
        if not 0 < width <= _MAX_WIDTH:
            raise ValueError(
                f"width={width}: must be above 0 and at most {_MAX_WIDTH} (1 is the paper's number of filters)"
            )
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization={normalization!r}: must be one of {', '.join(NORMALIZATIONS)}")
        super().__init__()
        self.options: dict[str, Any] = {"architecture": architecture, "width": width, "normalization": normalization}

        channels, number = 3, 0
        for row in table:
            if isinstance(row, Conv):
                filters, number = max(1, round(width * row.filters)), number + 1
                convolution = Convolution(channels, filters, row.kernel, row.stride, row.padding)
                self.add_module(f"conv{number}", convolution)
                channels = filters
            elif isinstance(row, Norm):
                self.add_module(f"norm{number}", NORMALIZATIONS[normalization]())
            else:
                self.add_module(f"pool{number}", nn.MaxPool2d(row.kernel, row.stride))
        self.channels = channels
        if aligned:
            self._align()

    def _align(self) -> None:
        """Makes every padding floor(kernel / 2)."""
        self.options = {**self.options, "aligned": True}  # only where it is: hashes of other networks stay the same
        for layer in self:
            if isinstance(layer, Convolution):
                layer.padding = (layer.kernel_size[0] // 2, layer.kernel_size[1] // 2)
            elif isinstance(layer, nn.MaxPool2d):
                layer.padding = _side(layer.kernel_size) // 2

    @property
    def footprints(self) -> list[Footprint]:
        """Kernel, stride and padding of every layer that slides a window, in order."""
        return self.footprints_to(self.layers[-1])

    def footprints_to(self, layer: str) -> list[Footprint]:
        """Returns the `footprints` up to and with a named layer: those of convolutions, poolings and normalizations.

        A normalization within channels sees the cells around each cell; the other kinds see only the cell itself, and
        have no footprint.

        Raises ValueError for a name that is not in `layers`.
        """
        check_names("layer", [layer], self.layers)
        # Not by a comprehension that names a value: torch.compile cannot follow one.
        footprints = map(_footprint, list(self)[: self.layers.index(layer) + 1])
        return [footprint for footprint in footprints if footprint is not None]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.named_children())

    @property
    def stride(self) -> int:
        return total_stride(self.footprints)

    @property
    def offset(self) -> int | Fraction:
        return first_center(self.footprints)

    @property
    def smallest_input(self) -> int:
        return smallest_input(self.footprints)

    def map_side(self, side: int) -> int:
        """Returns the cells along one side of the map of an image with `side` pixels there; 0 if it is too small."""
        return side_lengths(side, self.footprints)[-1]

    def layer_outputs(self, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Returns the outputs (N, C, h, w) of named layers, from one forward pass that ends at the last of them.

        Raises ValueError for a name that is not in `layers`.
        """
        check_names("layer", layers, self.layers)
        outputs: dict[str, Tensor] = {}
        for name, module in self.named_children():
            if len(outputs) == len(set(layers)):
                break
            images = module(images)
            if name in layers:
                outputs[name] = images
        return outputs

    def aligned(self) -> "Backbone":
        """Returns the same network with every padding floor(kernel / 2), so that cell i is centred on pixel stride * i.

        This is the paper's padding for whole images and windows ("during deployment we pad floor(p/2) pixels for a
        layer with a filter size of p", Appendix A). Parameters are shared, not copied. Overfeat's even 2 x 2 pooling
        centres cells 3 pixels left of that (`offset` is -3), which the paper ignores.
        """
        shared = {id(parameter): parameter for parameter in self.parameters()}
        backbone = copy.deepcopy(self, shared)
        backbone._align()
        return backbone


def _footprint(layer: nn.Module) -> Footprint | None:
    if isinstance(layer, (Convolution, nn.MaxPool2d)):
        return Footprint(_side(layer.kernel_size), _side(layer.stride), _side(layer.padding))
    if isinstance(layer, WithinChannelResponseNorm):
        return Footprint(layer.size, padding=layer.size // 2)
    return None


def _side(size: Any) -> int:
    """A convolution keeps its sizes as (height, width), a pooling as one number; both are square here."""
    return int(size[0] if isinstance(size, tuple) else size)


def zf5(*, width: float = 1.0, normalization: str = "within_channel", aligned: bool = False) -> Backbone:
    """ZF-5: Zeiler and Fergus's fast network. Map sides at 224: 111, 55, 27, 13; stride 16."""
    return Backbone("zf5", ZF5, width, normalization, aligned)


def convnet5(*, width: float = 1.0, normalization: str = "across_channels", aligned: bool = False) -> Backbone:
    """Convnet*-5: Krizhevsky's network with its first two poolings one layer later. At 224: 55, 27, 13; stride 16."""
    return Backbone("convnet5", CONVNET5, width, normalization, aligned)


def overfeat5(*, width: float = 1.0, normalization: str = "across_channels", aligned: bool = False) -> Backbone:
    """Overfeat-5. Map sides at 224: 109, 36, 18; stride 12."""
    return Backbone("overfeat5", OVERFEAT5, width, normalization, aligned)


def overfeat7(*, width: float = 1.0, normalization: str = "across_channels", aligned: bool = False) -> Backbone:
    """Overfeat-7: Overfeat-5 with two more convolutions of 512 filters."""
    return Backbone("overfeat7", OVERFEAT7, width, normalization, aligned)


BACKBONES: dict[str, Callable[..., Backbone | TimmBackbone]] = {
    "zf5": zf5,
    "convnet5": convnet5,
    "overfeat5": overfeat5,
    "overfeat7": overfeat7,
    "timm": TimmBackbone,
}


def without_weights(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a backbone, or a section of them, without weights to load or download."""
    return {key: value for key, value in options.items() if key not in ("pretrained", "weights")}


def build_backbone(architecture: str, **options: Any) -> Backbone | TimmBackbone:
    """Builds the backbone that BACKBONES has under this name.

    Raises ValueError for an unknown name, TypeError for an unknown option.
    """
    if architecture not in BACKBONES:
        raise ValueError(f"backbone={architecture!r}: must be one of {', '.join(BACKBONES)}")
    return BACKBONES[architecture](**options)
