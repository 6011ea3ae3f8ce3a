"""Any timm model as a backbone; see `sppnet.backbones` for what a backbone has."""

import copy
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppnet.runtime.names import check_names, first_line


class TimmBackbone(nn.Module):
    """A timm model up to its last feature map; stride, map sides and offset are measured on the model itself.

    Models with position embeddings or windows are built for images of any size where timm supports it; incomplete
    patches are padded with zeros on the right and below.

    Args:
        name: any model of `timm.list_models()` that returns feature maps, such as "resnet18".
        pretrained: whether to start from timm's weights, which are downloaded.
        weights: a file of weights to start from instead.
        out_indices: one index, that of the feature map, as timm counts them. None is [-1], the last; [-2] of a ResNet
            has stride 16.

    Raises ValueError for an unknown model, one without such feature maps, or whose cells do not lie at a fixed stride,
    for a file that does not hold weights of the model, and for `pretrained` and `weights` together.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        out_indices: list[int] | None = None,
    ) -> None:
        super().__init__()
        _check_model(name)
        if out_indices is not None and len(out_indices) != 1:
            raise ValueError(f"backbone.out_indices={out_indices}: must be one index, such as [-1]")
        if pretrained and weights:
            raise ValueError(f"backbone.pretrained=true, backbone.weights={weights}: set one of them, not both")
        self._index = int(out_indices[0]) if out_indices else -1
        outline = _outline(name, self._index)
        with _timm_messages():
            self.body = _create_timm_model(name, self._index, pretrained, weights)
        if weights:
            _check_weights(self.body, name, self._index, weights)
        # A network built from these options gets its weights from a checkpoint and must not download any.
        self.options = {"architecture": "timm", "name": name, "pretrained": False}
        if self._index != -1:
            self.options["out_indices"] = [self._index]
        self.channels, self.channels_last = outline.channels, outline.channels_last
        self.stride, self.smallest_input = outline.stride, outline.smallest_input
        self.layers = ("conv5",)

    @property
    def _outline(self) -> "_TimmOutline":
        return _outline(str(self.options["name"]), self._index)

    @property
    def offset(self) -> int | Fraction:
        """See `_TimmOutline.offset`."""
        return self._outline.offset

    def map_side(self, side: int) -> int:
        """Cells along one side of the feature map of an image with `side` x `side` pixels.

        Raises ValueError, with the model's own reason, for a side that the model does not take.
        """
        return self._outline.map_size(side, side)[1]

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._channels_first(self.body(images)[-1])
        try:
            return self._channels_first(self.body(images)[-1])
        except (AssertionError, RuntimeError):
            # Raises one clear line if the image size is the cause; many models fail by an assertion deep inside.
            self._outline.map_size(*images.shape[-2:])
            raise

    def _channels_first(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps

    def layer_outputs(self, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Returns the feature map, named conv5. Raises ValueError for any other name."""
        check_names("layer", layers, self.layers)
        return {layer: self(images) for layer in set(layers)}

    def aligned(self) -> "TimmBackbone":
        """Returns a copy with unchanged paddings, whose `offset` therefore stays the same.

        Parameters and buffers are shared, train and eval mode are not.
        """
        return copy.deepcopy(self, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})


def _check_model(name: str) -> None:
    """Raises ValueError, with names that are close, if timm has no model of this name."""
    import timm  # takes seconds, and only this file needs it

    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models(), 6)) or "timm.list_models() shows all"
        raise ValueError(f"backbone.name={name!r}: timm has no such model (close: {close})")


# How timm builds a model for images of any size: ViT, EVA and Swin accept the first option, older Swins the second.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def _create_timm_model(name: str, index: int, pretrained: bool = False, weights_file: str | None = None) -> nn.Module:
    """Returns a timm model that outputs one of its feature maps.

    Raises ValueError for a model without this feature map, and for a file that does not hold its weights.
    """
    import timm

    weights: dict[str, Any] = {}
    if weights_file:
        weights = {"pretrained_cfg_overlay": {"file": _checked_file(weights_file)}}
    for options in _ANY_SIZE:
        try:
            body = timm.create_model(
                name,
                pretrained=pretrained or bool(weights),
                features_only=True,
                out_indices=(index,),
                **weights,
                **options,
            )
            break
        except TypeError:  # the model does not accept the option
            if not options:
                raise
        except (RuntimeError, AttributeError, NotImplementedError, AssertionError, IndexError) as error:
            if weights:
                reason = f"backbone.weights={weights_file}: not weights of timm's {name}"
            else:
                reason = f"backbone.name={name!r}: timm gives no feature maps of this model at out_indices=[{index}]"
            raise ValueError(f"{reason} ({first_line(error)})") from error
        except OSError as error:  # of the download
            raise ValueError(
                f"backbone.pretrained=true: the weights of {name} cannot be downloaded ({first_line(error)}); "
                "backbone.weights=FILE takes them from a file"
            ) from error
    for module in body.modules():
        if hasattr(module, "dynamic_img_pad"):  # pads incomplete patches with zeros on the right and below
            setattr(module, "dynamic_img_pad", True)  # noqa: B010
    return body


_MARK = 12345.0  # no initial value of a weight


def _check_weights(body: nn.Module, name: str, index: int, path: str) -> None:
    """Raises ValueError if the file left a weight of the body at its initial value, or is of another model.

    timm only warns about weights that a file lacks, and about those that the model lacks. A few of these may be of
    another head; more than a tenth are of a larger model.
    """
    with torch.random.fork_rng(devices=[]), _timm_messages() as messages, _marked_before_loading():
        again = _create_timm_model(name, index, weights_file=path)
    for key, value in body.state_dict().items():
        if not torch.equal(value, again.state_dict()[key]):
            raise ValueError(f"backbone.weights={path}: not weights of timm's {name} ({key} is missing)")

    import timm

    with torch.device("meta"):
        own = timm.create_model(name).state_dict().keys()
    unexpected = re.search(r"Unexpected keys \((.*?)\)", "\n".join(messages))
    foreign = [key for key in (unexpected[1].split(", ") if unexpected else []) if key not in own]
    if len(foreign) > len(own) / 10:
        raise ValueError(f"backbone.weights={path}: not weights of timm's {name} (it has no {foreign[0]})")


@contextmanager
def _marked_before_loading() -> Iterator[None]:
    """Lets timm load files into models whose floating-point weights all have a value that none has initially.

    What a file lacks then differs from the initial values, also where these are constant, such as the statistics of
    batch normalization.
    """
    from timm.models import _builder

    load = _builder.load_pretrained

    def mark_and_load(model: nn.Module, *args: Any, **options: Any) -> None:
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.fill_(_MARK)
        load(model, *args, **options)

    _builder.load_pretrained = mark_and_load
    try:
        yield
    finally:
        _builder.load_pretrained = load


@contextmanager
def _timm_messages() -> Iterator[list[str]]:
    """Collects what timm logs while it builds a model, such as the weights of an unused head, instead of showing it."""
    messages: list[str] = []

    def collected(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logger = logging.getLogger("timm.models._builder")
    logger.addFilter(collected)
    try:
        yield messages
    finally:
        logger.removeFilter(collected)


def _checked_file(path: str) -> str:
    """Returns the path of a file that timm can read. Raises FileNotFoundError or ValueError."""
    import timm

    if not Path(path).is_file():
        raise FileNotFoundError(f"backbone.weights={path}: no such file of weights")
    try:
        timm.models.load_state_dict(path)
    except Exception as error:  # torch.load fails on foreign files in a dozen ways
        raise ValueError(f"backbone.weights={path}: not a file of weights ({first_line(error)})") from error
    return path


def pretrained_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, in 0..255, of the inputs that a timm model was made for."""
    import timm

    _check_model(name)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ValueError(f"backbone.name={name!r}: timm has no weights of this model")
    return tuple(255 * value for value in config.mean), tuple(255 * value for value in config.std)


class _TimmOutline:
    """A timm model without weights, used to measure stride, offset and map sizes.

    stride, channels: as timm states them, checked against the maps.
    channels_last: whether the model returns maps as (N, h, w, C).
    smallest_input: the smallest accepted side in pixels; larger sides may be refused.

    Raises ValueError for a model without feature maps, or whose maps do not grow by one cell per stride.
    """

    def __init__(self, name: str, index: int) -> None:
        self.name, self.index, self.channels_last = name, index, False
        # A few models read values while they run; tensors on "meta" have none, so these models run on the CPU.
        for device in ("meta", "cpu"):
            with torch.random.fork_rng(devices=[]), torch.device(device):
                self.device, self.model = device, _create_timm_model(name, index).eval()
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
                self.refusals[size] = (
                    f"backbone.name={self.name!r}: the model takes no images of {height} x {width} pixels "
                    f"({first_line(error)})"
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
            model = _create_timm_model(self.name, self.index).eval().requires_grad_(False)
            images = torch.randn(2, 3, side, side, requires_grad=True)

            maps = model(images)[-1]
            maps = maps.permute(0, 3, 1, 2) if self.channels_last else maps
            cells = maps.shape[3]
            middle = slice((cells - 1) // 2, cells // 2 + 1)
            inner = maps[:, :, middle, middle]

            # How much each image column matters to the middle cells; the centre of mass estimates the centre.
            (gradient,) = torch.autograd.grad((inner * torch.randn_like(inner)).sum(), images)
            weights = gradient.square().sum(dim=(0, 1, 2))
            center = (weights * torch.arange(side)).sum() / weights.sum()
        return float(center) - self.stride * (cells - 1) / 2


@cache
def _outline(name: str, index: int) -> _TimmOutline:
    return _TimmOutline(name, index)
