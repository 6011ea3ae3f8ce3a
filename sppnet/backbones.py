"""Backbones: the networks of Table 1 of arXiv:1406.4729v4 as data, and any timm model.

A backbone maps images (N, 3, H, W) to feature maps (N, channels, h, w) and has

    channels        filters of its last convolution
    stride          pixels between the centres of neighbouring cells
    offset          pixel on which the first cell is centred, counted from 0
    smallest_input  smallest side in pixels that still gives a cell
    map_side(side)  cells along one side of the map of an image of that side
    layers          names of the layers that `features(images, layer)` can return
    options         plain values: `build_backbone(**options)` builds the same backbone
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.geometry import Footprint, first_center, side_lengths, smallest_input, total_stride
from sppnet.normalization import LocalResponseNorm, WithinChannelResponseNorm


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

MAX_WIDTH = 8  # at which Overfeat-7, the largest, has 720 million parameters (2.9 GB)

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
        width: factor on the filters of every layer, above 0, at most MAX_WIDTH. 1 is the paper's.
        normalization: "within_channel", "across_channels" or "none".

    Raises ValueError for a width out of range or an unknown normalization.
    """

    def __init__(
        self, architecture: str, table: tuple[Conv | Pool | Norm, ...], width: float, normalization: str
    ) -> None:
        if not 0 < width <= MAX_WIDTH:
            raise ValueError(
                f"width={width}: must be above 0 and at most {MAX_WIDTH} (1 is the paper's number of filters)"
            )
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
        return [
            Footprint(_side(layer.kernel_size), _side(layer.stride), _side(layer.padding))
            for layer in self
            if isinstance(layer, (Convolution, nn.MaxPool2d))
        ]

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

    def features(self, images: Tensor, layer: str) -> Tensor:
        """Returns the (N, C, h, w) output of a named layer. Raises ValueError for a name that is not in `layers`."""
        if layer not in self.layers:
            raise ValueError(f"layer={layer!r}: must be one of {', '.join(self.layers)}")
        for name, module in self.named_children():
            images = module(images)
            if name == layer:
                break
        return images

    def aligned(self) -> "Backbone":
        """Returns the same network with every padding floor(kernel / 2), so that cell i is centred on pixel stride * i.

        This is the paper's padding for whole images and windows ("during deployment we pad floor(p/2) pixels for a
        layer with a filter size of p", Appendix A). Parameters are shared, not copied. Overfeat's even 2 x 2 pooling
        centres cells 3 pixels left of that (`offset` is -3), which the paper ignores.
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
    """A timm model up to its last feature map; stride, map sides and offset are measured on the model itself.

    Models with position embeddings or windows are built for images of any size where timm supports it; incomplete
    patches are padded with zeros on the right and below.

    Args:
        name: any model of `timm.list_models()` that returns feature maps, such as "resnet18".
        pretrained: start from timm's weights (downloads them).

    Raises ValueError for an unknown model, or one without feature maps whose cells lie at a fixed stride.
    """

    def __init__(self, *, name: str, pretrained: bool = False) -> None:
        import timm  # takes seconds, and only this class needs it

        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(get_close_matches(name, timm.list_models(), 6)) or "timm.list_models() shows all"
            raise ValueError(f"backbone.name={name!r}: timm has no such model (close: {close})")
        outline = _outline(name)
        self.body = _create_timm_model(name, pretrained=pretrained)
        # A network built from these options gets its weights from a checkpoint and must not download any.
        self.options = {"architecture": "timm", "name": name, "pretrained": False}
        self.channels, self.channels_last = outline.channels, outline.channels_last
        self.stride, self.smallest_input = outline.stride, outline.smallest_input
        self.layers = ("conv5",)

    @property
    def offset(self) -> int | Fraction:
        """See `_TimmOutline.offset`."""
        return _outline(str(self.options["name"])).offset

    def map_side(self, side: int) -> int:
        """Cells along one side of the feature map of an image with `side` x `side` pixels.

        Raises ValueError, with the model's own reason, for a side that the model does not take.
        """
        return _outline(str(self.options["name"])).map_size(side, side)[1]

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._channels_first(self.body(images)[-1])
        try:
            return self._channels_first(self.body(images)[-1])
        except (AssertionError, RuntimeError):
            # Raises one clear line if the image size is the cause; many models fail by an assertion deep inside.
            _outline(str(self.options["name"])).map_size(*images.shape[-2:])
            raise

    def _channels_first(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps

    def features(self, images: Tensor, layer: str) -> Tensor:
        """Returns the feature map, named conv5. Raises ValueError for any other name."""
        if layer not in self.layers:
            raise ValueError(f"layer={layer!r}: must be one of {', '.join(self.layers)}")
        return self(images)

    def aligned(self) -> "TimmBackbone":
        """Returns a copy with unchanged paddings, whose `offset` therefore stays the same.

        Parameters and buffers are shared, train and eval mode are not.
        """
        return copy.deepcopy(self, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})


# How timm builds a model for images of any size: ViT, EVA and Swin accept the first option, older Swins the second.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def _create_timm_model(name: str, *, pretrained: bool = False) -> nn.Module:
    """Returns a timm model that outputs its last feature map. Raises ValueError for a model without feature maps."""
    import timm

    for options in ANY_SIZE:
        try:
            body = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,), **options)
            break
        except TypeError:  # the model does not accept the option
            if not options:
                raise
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"backbone.name={name!r}: timm gives no feature maps of this model ({error})") from error
    for module in body.modules():
        if hasattr(module, "dynamic_img_pad"):  # pads incomplete patches with zeros on the right and below
            setattr(module, "dynamic_img_pad", True)  # noqa: B010
    return body


class _TimmOutline:
    """A timm model without weights, run to measure what it does to the size of images.

    stride, channels: as timm states them, checked against the maps.
    channels_last: whether the model returns maps as (N, h, w, C).
    smallest_input: the smallest side in pixels that gives a cell, without a gap up to the next multiple of the stride.
        Some models accept few of the sides above it.

    Raises ValueError for a model without feature maps, or whose maps do not grow by one cell per stride.
    """

    def __init__(self, name: str) -> None:
        self.name, self.channels_last = name, False
        # A few models read values while they run, and tensors on "meta" have none.
        for device in ("meta", "cpu"):
            with torch.random.fork_rng(devices=[]), torch.device(device):
                self.device, self.model = device, _create_timm_model(name).eval()
            info: Any = self.model.feature_info
            self.channels, self.stride = int(info.channels()[-1]), int(info.reduction()[-1])
            self.shapes: dict[tuple[int, int], tuple[int, ...]] = {}
            self.refusals: dict[tuple[int, int], str] = {}
            sides = self._multiples()
            taken = next((side for side in sides if self._cells(side)), None)
            if taken is not None:
                break
        else:
            raise ValueError(f"{self.refusals[sides[-1], sides[-1]]}, nor any smaller multiple of {self.stride}")
        if self.channels not in (self.shapes[taken, taken][1], self.shapes[taken, taken][3]):
            raise ValueError(f"backbone.name={name!r}: timm gives no feature maps of this model")
        self.channels_last = self.shapes[taken, taken][1] != self.channels
        if self._cells(taken + self.stride) not in (0, self._cells(taken) + 1):
            raise ValueError(f"backbone.name={name!r}: its maps do not grow by one cell per {self.stride} pixels")
        self.smallest_input = self._first_side(taken)

    def _multiples(self) -> range:
        """Sides to try: up to the size that the model was made for, or 224 if timm does not name one."""
        import timm

        made_for = timm.get_pretrained_cfg(self.name)
        largest = made_for.input_size[-1] if made_for else 224
        return range(self.stride, largest + self.stride, self.stride)

    @torch.no_grad()
    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) of the map in cells. Raises ValueError for image sizes that the model refuses."""
        size = (height, width)
        if size not in self.shapes and size not in self.refusals:
            try:
                maps = self.model(torch.zeros(1, 3, *size, device=self.device))[-1]
                if maps.ndim != 4:
                    raise ValueError(f"it gives a tensor of shape {tuple(maps.shape)}")
                self.shapes[size] = tuple(maps.shape)
            except Exception as error:  # whatever the model's own code raises
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.refusals[size] = (
                    f"backbone.name={self.name!r}: the model takes no images of {height} x {width} pixels ({reason})"
                )
        if size in self.refusals:
            raise ValueError(self.refusals[size])
        shape = self.shapes[size]
        return (shape[1], shape[2]) if self.channels_last else (shape[2], shape[3])

    def _cells(self, side: int) -> int:
        """Returns the cells along one side of the map, 0 if the model refuses that side."""
        try:
            return self.map_size(side, side)[1]
        except ValueError:
            return 0

    def _first_side(self, side: int) -> int:
        """Returns the smallest side whose map has as many cells as that of `side`, by bisection."""
        cells, too_small = self._cells(side), side - self.stride
        while side - too_small > 1:
            middle = (side + too_small) // 2
            side, too_small = (middle, too_small) if self._cells(middle) >= cells else (side, middle)
        return side

    @cached_property
    def offset(self) -> int | Fraction:
        """The pixel, counted from 0, on which the first cell is centred.

        The smallest image with n cells fits the layers exactly, so with symmetric paddings the cells lie symmetrically
        on it. That leaves one case open: models that round sides up get 0, which is right for symmetric paddings
        (ResNet), while models that pad on the right only are centred on (stride - 1) / 2 (patches). The gradients of
        an untrained copy decide it. With TensorFlow's paddings (tf_...) cells move with the size of the image, by up
        to half a stride from the offset given here.
        """
        side = self._first_side(8 * self.stride) if self._cells(8 * self.stride) else 0
        cells = self._cells(side) if side else 0
        if side and self._cells(side - 1) == cells - 1:
            centred = Fraction(side - 1 - (cells - 1) * self.stride, 2)
            if centred != 0:
                return int(centred) if centred.denominator == 1 else centred
        padded_on_the_right = Fraction(self.stride - 1, 2)
        return 0 if self._measured_offset() < padded_on_the_right / 2 else padded_on_the_right

    def _measured_offset(self) -> float:
        """Estimates the offset from the gradients of the middle cells of an untrained model, to within a few pixels."""
        side = 8 * self.stride if self._cells(8 * self.stride) else next(s for s in self._multiples() if self._cells(s))
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            torch.manual_seed(0)
            model = _create_timm_model(self.name).eval().requires_grad_(False)
            images = torch.randn(2, 3, side, side, requires_grad=True)
            maps = model(images)[-1]
            maps = maps.permute(0, 3, 1, 2) if self.channels_last else maps
            cells = maps.shape[3]
            middle = slice((cells - 1) // 2, cells // 2 + 1)
            inner = maps[:, :, middle, middle]
            (gradient,) = torch.autograd.grad((inner * torch.randn_like(inner)).sum(), images)
            weights = gradient.square().sum(dim=(0, 1, 2))
            center = (weights * torch.arange(side)).sum() / weights.sum()
        return float(center) - self.stride * (cells - 1) / 2


@cache
def _outline(name: str) -> _TimmOutline:
    return _TimmOutline(name)


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
    """Builds the backbone that BACKBONES has under this name.

    Raises ValueError for an unknown name, TypeError for an unknown option.
    """
    if architecture not in BACKBONES:
        raise ValueError(f"backbone={architecture!r}: must be one of {', '.join(BACKBONES)}")
    return BACKBONES[architecture](**options)
