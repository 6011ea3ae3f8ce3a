"""The convolutional parts: Table 1 of arXiv:1406.4729v4 as data, and any timm model.

A backbone maps images (N, 3, H, W) to feature maps (N, channels, h, w) and knows

    channels        filters of its last convolution
    stride          pixels between the centres of neighbouring cells
    offset          pixel on which the first cell is centred, counted from 0
    smallest_input  smallest side in pixels that still gives a cell
    layers          names of the layers that `features(images, layer)` can return
    options         plain values from which `build_backbone(**options)` builds it again
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.geometry import Footprint, first_center, side_lengths, smallest_input, total_stride
from sppnet.normalization import LocalResponseNorm, WithinChannelResponseNorm


@dataclass(frozen=True)
class Conv:
    """A convolution and the ReLU behind it."""

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
# after it where Table 1 says so (Overfeat). The pooling behind the last convolution is the pyramid's place.
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

NORMALIZATIONS: dict[str, Callable[[], nn.Module]] = {
    "within_channel": WithinChannelResponseNorm,
    "across_channels": LocalResponseNorm,
    "none": nn.Identity,
}


class Convolution(nn.Conv2d):
    """Convolution followed by ReLU, under the one name that the paper gives both."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(super().forward(maps), inplace=True)


class Backbone(nn.Sequential):
    """One of Table 1's networks, up to its last convolution.

    Layers are called conv1, norm1, pool1, conv2, ... A convN is given after its ReLU.

    Args:
        architecture: key of BACKBONES under which `build_backbone` finds this network again.
        table: its layers.
        width: factor on the filters of every layer, above 0. 1 is the paper's.
        normalization: "within_channel", "across_channels" or "none".

    Raises ValueError for a width that is not positive or an unknown normalization.
    """

    def __init__(
        self, architecture: str, table: tuple[Conv | Pool | Norm, ...], width: float, normalization: str
    ) -> None:
        if not width > 0:
            raise ValueError(f"width={width}: must be above 0 (1 is the paper's number of filters)")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization={normalization!r}: must be one of {', '.join(NORMALIZATIONS)}")
        super().__init__()
        self.options = {"architecture": architecture, "width": width, "normalization": normalization}
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

    @property
    def footprints(self) -> list[Footprint]:
        """Kernel, stride and padding of every convolution and pooling, in order."""
        footprints = []
        for layer in self:
            if isinstance(layer, (Convolution, nn.MaxPool2d)):
                footprints.append(Footprint(_side(layer.kernel_size), _side(layer.stride), _side(layer.padding)))
        return footprints

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
        """Cells along one side of the feature map of an image with `side` pixels there; 0 if it is too small."""
        return side_lengths(side, self.footprints)[-1]

    def features(self, images: Tensor, layer: str) -> Tensor:
        """The (N, C, h, w) output of a named layer. Raises ValueError for a name that is not in `layers`."""
        if layer not in self.layers:
            raise ValueError(f"layer={layer!r}: must be one of {', '.join(self.layers)}")
        for name, module in self.named_children():
            images = module(images)
            if name == layer:
                break
        return images

    def aligned(self) -> "Backbone":
        """The same parameters with every padding floor(kernel / 2), so that cell i is centred on pixel stride * i.

        This is the paper's padding for whole images and windows ("during deployment we pad floor(p/2) pixels for a
        layer with a filter size of p", Appendix A). Parameters are shared, not copied. Overfeat's even 2 x 2 pooling
        centres cells 3 pixels left of that (`offset` says -3), which the paper ignores.
        """
        shared = {id(parameter): parameter for parameter in self.parameters()}
        backbone = copy.deepcopy(self, shared)
        for layer in backbone:
            if isinstance(layer, Convolution):
                layer.padding = (layer.kernel_size[0] // 2, layer.kernel_size[1] // 2)
            elif isinstance(layer, nn.MaxPool2d):
                layer.padding = _side(layer.kernel_size) // 2
        return backbone


def _side(size: Any) -> int:
    """A convolution keeps its sizes as (height, width), a pooling as one number; both are square here."""
    return int(size[0] if isinstance(size, tuple) else size)


class TimmBackbone(nn.Module):
    """The last feature map of a timm model, with channels and stride as timm states them.

    Args:
        name: any model of `timm.list_models()` that gives feature maps, such as "resnet18".
        pretrained: start from timm's weights (downloads them).

    Its layers pad floor(kernel / 2) nearly everywhere, so the first cell is taken as centred on pixel 0 and
    `aligned()` is the model as it is.

    Raises ValueError for an unknown model, or one without feature maps.
    """

    offset = 0

    def __init__(self, *, name: str, pretrained: bool = False) -> None:
        import timm  # takes seconds, and only this class needs it

        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(get_close_matches(name, timm.list_models(), 6)) or "timm.list_models() shows all"
            raise ValueError(f"backbone.name={name!r}: timm has no such model (close: {close})")
        try:
            self.body = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"backbone.name={name!r}: timm gives no feature maps of this model ({error})") from error
        # A network built again gets its weights from a checkpoint, so it has nothing to download.
        self.options = {"architecture": "timm", "name": name, "pretrained": False}
        info: Any = self.body.feature_info
        self.channels, self.stride = int(info.channels()[-1]), int(info.reduction()[-1])
        self.smallest_input = self.stride
        self.layers = ("conv5",)

    def map_side(self, side: int) -> int:
        """Cells along one side of the feature map of an image with `side` pixels there."""
        return -(-side // self.stride)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)[-1]
        # Swin and its kin give (N, h, w, C).
        return maps.permute(0, 3, 1, 2) if str(getattr(self.body, "output_fmt", "")).endswith("NHWC") else maps

    def features(self, images: Tensor, layer: str) -> Tensor:
        """The feature map, under the name conv5. Raises ValueError for any other name."""
        if layer not in self.layers:
            raise ValueError(f"layer={layer!r}: must be one of {', '.join(self.layers)}")
        return self(images)

    def aligned(self) -> "TimmBackbone":
        """The same network: parameters and buffers are shared, train and eval mode are not."""
        return copy.deepcopy(self, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})


def zf5(*, width: float = 1.0, normalization: str = "within_channel") -> Backbone:
    """ZF-5: Zeiler and Fergus's fast network. Map sides at 224: 111, 55, 27, 13; stride 16."""
    return Backbone("zf5", ZF5, width, normalization)


def convnet5(*, width: float = 1.0, normalization: str = "across_channels") -> Backbone:
    """Convnet*-5: Krizhevsky's network with its first two poolings one layer later. At 224: 55, 27, 13; stride 16."""
    return Backbone("convnet5", CONVNET5, width, normalization)


def overfeat5(*, width: float = 1.0, normalization: str = "across_channels") -> Backbone:
    """Overfeat-5. Map sides at 224: 109, 36, 18; stride 12."""
    return Backbone("overfeat5", OVERFEAT5, width, normalization)


def overfeat7(*, width: float = 1.0, normalization: str = "across_channels") -> Backbone:
    """Overfeat-7: Overfeat-5 with two more convolutions of 512 filters."""
    return Backbone("overfeat7", OVERFEAT7, width, normalization)


BACKBONES: dict[str, Callable[..., Backbone | TimmBackbone]] = {
    "zf5": zf5,
    "convnet5": convnet5,
    "overfeat5": overfeat5,
    "overfeat7": overfeat7,
    "timm": TimmBackbone,
}


def build_backbone(architecture: str, **options: Any) -> Backbone | TimmBackbone:
    """The backbone of that name in BACKBONES.

    Raises ValueError for an unknown name, TypeError for an unknown option.
    """
    if architecture not in BACKBONES:
        raise ValueError(f"backbone={architecture!r}: must be one of {', '.join(BACKBONES)}")
    return BACKBONES[architecture](**options)
