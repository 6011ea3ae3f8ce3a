"""SPPNet: backbone -> spatial pyramid pooling -> fc6, fc7, fc8, or fc8 alone; named features; save and load.

Shape letters: N images, C channels of the last convolution, B bins of the pyramid.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sppnet.backbones import Backbone, build_backbone, without_weights
from sppnet.geometry import CROP_SIDE
from sppnet.initialization import INITIALIZATIONS
from sppnet.pyramid import SpatialPyramidPool
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import check_names, first_line
from sppnet.runtime.published import CONFIG_FILE, WEIGHTS_FILE, local_folder, read_published
from sppnet.runtime.run_directory import checkpoint_file, file_digest
from sppnet.timm_backbone import TimmBackbone

# Mean of ImageNet's RGB values in 0..255, and their standard deviation.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

_NO_PYRAMID_GRID = 6  # the paper's baseline pools its last maps to 6 x 6 (arXiv:1406.4729v4, §3.1.1)

_MAX_PARAMETERS = 1_000_000_000  # of fc6, fc7 and fc8 together, 4 GB; the paper's have at most 126 million

_HIDDEN_LAYERS = ("fc6", "fc7")  # that a linear classifier does not have


class SPPNet(nn.Module):
    """A classifier for images of any size: (N, 3, H, W) -> logits (N, num_classes).

    Images come as floats on the network's own scale, (x - input_mean) / input_std for RGB x in 0..255:
    `sppnet.data.batches.to_network_input` does it.

    Args:
        backbone: a name of `sppnet.backbones.BACKBONES`, or a backbone.
        levels: of the pyramid. None builds the paper's baseline: a fixed 6 x 6 grid, for images of one size.
        num_classes: length of the logits.
        hidden: outputs of fc6 and of fc7; 4096 in the paper. None: a linear classifier, fc8 directly on the pyramid.
        dropout: ratio after fc6 and fc7 while training; of a linear classifier, before fc8.
        initialization: a name of INITIALIZATIONS: "paper" is for inputs of 0..255 minus the mean, "fan_in" for inputs
            of unit variance.
        input_mean, input_std: three numbers each, red, green, blue, for x in 0..255.
        classes: names of the classes in the order of the logits, where known.
        input_side: the side in pixels of the square images that a network without a pyramid takes; None is 224.
            With a pyramid, which takes images of any size, it must be None.

    Raises ValueError for levels that are not integers from 1, for values out of range, and for fully connected layers
    of more than _MAX_PARAMETERS together.
    """

    def __init__(
        self,
        backbone: str | Backbone | TimmBackbone = "zf5",
        levels: Sequence[int] | None = (6, 3, 2, 1),
        num_classes: int = 1000,
        *,
        hidden: int | None = 4096,
        dropout: float = 0.5,
        initialization: str = "paper",
        input_mean: Sequence[float] = IMAGENET_MEAN,
        input_std: Sequence[float] = (1.0, 1.0, 1.0),
        classes: Sequence[str] | None = None,
        input_side: int | None = None,
    ) -> None:
        super().__init__()
        check_settings(hidden, dropout, input_mean, input_std)
        _check_arguments(num_classes, initialization, classes)
        self.backbone = build_backbone(backbone) if isinstance(backbone, str) else backbone
        # numpy numbers and strings would make a checkpoint that weights_only=True refuses.
        self.num_classes, self.hidden = int(num_classes), None if hidden is None else int(hidden)
        self.input_mean, self.input_std = tuple(map(float, input_mean)), tuple(map(float, input_std))
        self.classes = None if classes is None else tuple(map(str, classes))
        self.pyramid = SpatialPyramidPool((_NO_PYRAMID_GRID,) if levels is None else levels)
        self.levels = None if levels is None else self.pyramid.levels
        self.input_side = _input_side(self.backbone, self.levels, input_side)
        self._input_cells = None if self.input_side is None else self.backbone.map_side(self.input_side)
        _check_parameters(self.pooled_length, self.pyramid.levels, self.hidden, self.num_classes)
        if self.hidden is not None:
            self.fc6 = nn.Linear(self.pooled_length, self.hidden)
            self.fc7 = nn.Linear(self.hidden, self.hidden)
        self.fc8 = nn.Linear(self.hidden or self.pooled_length, self.num_classes)
        self.dropout = nn.Dropout(float(dropout))
        INITIALIZATIONS[initialization](self)

    @property
    def pooled_length(self) -> int:
        """C * B: how many values the pyramid makes of an image or a window."""
        return self.backbone.channels * self.pyramid.bins

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.pool(self.maps(images)))

    def maps(self, images: Tensor) -> Tensor:
        """Computes the feature maps (N, C, h, w) of the last convolution.

        Raises ValueError for images too small for the backbone; without a pyramid, for images that are not
        `input_side` x `input_side`.
        """
        self._check_size(images)
        return self.backbone(images)

    def _check_size(self, images: Tensor) -> None:
        smallest, sides = self.backbone.smallest_input, tuple(images.shape[-2:])
        if min(sides) < smallest:
            raise ValueError(f"images of {sides[0]} x {sides[1]} pixels: the backbone needs at least {smallest}")
        if self.input_side is not None and sides != (self.input_side, self.input_side):
            raise ValueError(
                f"images of {sides[0]} x {sides[1]} pixels: this network without a pyramid takes "
                f"{self.input_side} x {self.input_side} images only"
            )

    def pool(self, maps: Tensor) -> Tensor:
        """Pools feature maps (N, C, h, w) into vectors (N, C * B) for `classify`.

        Raises ValueError, without a pyramid, for maps that are not of `input_side` x `input_side` images.
        """
        side = self._input_cells
        if side is not None and tuple(maps.shape[-2:]) != (side, side):
            raise ValueError(
                f"feature maps of {maps.shape[-2]} x {maps.shape[-1]} cells: this network without a pyramid takes "
                f"{self.input_side} x {self.input_side} images ({side} x {side} cells) only"
            )
        return self.pyramid(maps)

    def classify(self, pooled: Tensor) -> Tensor:
        """Computes logits (N, num_classes) from pooled vectors (N, C * B) of whole maps or of windows."""
        if self.hidden is None:
            return self._logits(self.dropout(pooled))
        fc6 = self.dropout(torch.relu(self.fc6(pooled)))
        fc7 = self.dropout(torch.relu(self.fc7(fc6)))
        return self._logits(fc7)

    def _logits(self, values: Tensor) -> Tensor:
        """Applies fc8 to the outputs of fc7, or of a linear classifier to pooled vectors."""
        weights, device = self.fc8.weight, values.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if values.dtype == weights.dtype and not autocast:
            return self.fc8(values)
        # float32 under autocast as well: in bfloat16 the logits of two classes often tie, and a tie counts as wrong.
        with torch.autocast(device, enabled=False):
            return self.fc8(values.to(weights.dtype))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names for `features`: the backbone's layers, then pool5 and its levels, fc6 and fc7 if there are any, fc8."""
        levels = (f"pool5_{n}x{n}" for n in self.pyramid.levels)
        hidden = () if self.hidden is None else _HIDDEN_LAYERS
        return (*self.backbone.layers, "pool5", *levels, *hidden, "fc8")

    def check_layers(self, key: str, given: Collection[str], others: Collection[str] = ()) -> None:
        """Raises ValueError, with `key`, for a given name that is neither one of `layers` nor one of `others`."""
        if self.hidden is None and (absent := [layer for layer in given if layer in _HIDDEN_LAYERS]):
            raise ValueError(
                f"{key}={absent[0]}: this network was built with hidden=null, a linear classifier on the pyramid, and "
                "has no fc6 and fc7"
            )
        check_names(key, given, (*self.layers, *others))

    def features(self, images: Tensor, layer: str) -> Tensor:
        """Returns the output of a named layer, after its ReLU where it has one.

        Convolutions, normalizations and poolings of the backbone give maps (N, filters, h, w); "pool5" gives the whole
        pyramid (N, C * B), "pool5_6x6" one level of it (N, C * 36); "fc6" and "fc7" (N, hidden); "fc8" the logits.
        Layers after the last convolution have these names in every network; in Overfeat-7 the paper calls them pool7,
        fc8, fc9. Call `eval()` first to switch dropout off.

        Raises ValueError for a layer that is not in `layers`.
        """
        return self.layer_outputs(images, [layer])[layer]

    def layer_outputs(self, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Returns the `features` of several layers, from one forward pass that ends at the last of them."""
        self.check_layers("layer", layers)
        maps, last = set(layers).intersection(self.backbone.layers), self.backbone.layers[-1]
        if maps == set(layers):
            outputs = self.backbone.layer_outputs(images, maps)
        else:
            self._check_size(images)
            outputs = self.backbone.layer_outputs(images, {*maps, last})
            outputs |= self._outputs_after(outputs[last], layers)
        return {layer: outputs[layer] for layer in layers}

    def _outputs_after(self, maps: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Returns the outputs of those of `layers` that follow the last feature maps."""
        pooled = self.pool(maps)
        outputs = {layer: self._level(pooled, layer) for layer in layers if layer.startswith("pool5")}
        if self.hidden is None:
            return outputs | ({"fc8": self.classify(pooled)} if "fc8" in layers else {})
        if not {"fc6", "fc7", "fc8"}.isdisjoint(layers):
            outputs["fc6"] = torch.relu(self.fc6(pooled))
        if not {"fc7", "fc8"}.isdisjoint(layers):
            outputs["fc7"] = torch.relu(self.fc7(self.dropout(outputs["fc6"])))
        if "fc8" in layers:
            outputs["fc8"] = self._logits(self.dropout(outputs["fc7"]))
        return outputs

    def _level(self, pooled: Tensor, layer: str) -> Tensor:
        start = 0
        for n in self.pyramid.levels:
            end = start + n * n * self.backbone.channels
            if layer == f"pool5_{n}x{n}":
                return pooled[:, start:end]
            start = end
        return pooled

    def aligned(self) -> "SPPNet":
        """Returns a network with the same parameters and every padding floor(kernel / 2): see `Backbone.aligned`."""
        shared = {id(parameter): parameter for parameter in self.parameters()}
        network = copy.deepcopy(self, shared)
        network.backbone = self.backbone.aligned()
        if self.input_side is not None:
            network._input_cells = network.backbone.map_side(self.input_side)
        return network

    def description(self) -> dict[str, Any]:
        """Returns plain values from which `SPPNet.from_description` builds the same network, without its weights."""
        return {
            "backbone": dict(self.backbone.options),
            "levels": None if self.levels is None else list(self.levels),
            "num_classes": self.num_classes,
            "hidden": self.hidden,
            "dropout": self.dropout.p,
            "input_mean": list(self.input_mean),
            "input_std": list(self.input_std),
            "classes": None if self.classes is None else list(self.classes),
            "input_side": self.input_side,
        }

    def summary(self) -> str:
        """Describes the network in a few words."""
        options = {k: v for k, v in self.backbone.options.items() if k not in {"architecture", "pretrained"}}
        details = ", ".join(f"{key} {value}" for key, value in options.items())
        pyramid = f"no pyramid, {self.input_side} pixels only"
        if self.levels is not None:
            pyramid = f"pyramid {', '.join(map(str, self.levels))}"
        classifier = ", linear classifier" if self.hidden is None else ""
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return f"{self.backbone.options['architecture']} ({details}), {pyramid}{classifier}, {parameters:,} parameters"

    @classmethod
    def from_description(cls, description: dict[str, Any], initialization: str = "none") -> "SPPNet":
        """Builds the network of a `description`, with arbitrary weights or those of INITIALIZATIONS. Downloads nothing.

        Raises ValueError, TypeError or KeyError for anything but a description.
        """
        options = dict(description)
        backbone = without_weights(options.pop("backbone"))
        return cls(build_backbone(**backbone), initialization=initialization, **options)


def check_settings(
    hidden: int | None, dropout: float, input_mean: Sequence[float], input_std: Sequence[float], *, section: str = ""
) -> None:
    """Raises ValueError for settings of SPPNet that are out of range.

    Args:
        hidden, dropout, input_mean, input_std: as SPPNet takes them.
        section: put before all these names but `hidden` in messages, such as "recipe.".
    """
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden={hidden}: must be at least 1, or null for a linear classifier")
    if not 0 <= dropout < 1:
        raise ValueError(f"{section}dropout={dropout}: must be at least 0 and below 1")
    finite = all(map(math.isfinite, (*input_mean, *input_std)))
    if len(input_mean) != 3 or len(input_std) != 3 or not finite or not min(input_std) > 0:
        raise ValueError(
            f"{section}input_mean={input_mean}, {section}input_std={input_std}: must be three numbers each, "
            "input_std above 0"
        )


def _check_arguments(num_classes: int, initialization: str, classes: Sequence[str] | None) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: must be at least 1")
    if initialization not in INITIALIZATIONS:
        raise ValueError(f"initialization={initialization!r}: must be one of {', '.join(INITIALIZATIONS)}")
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"classes: {len(classes)} names for num_classes={num_classes}")
    if isinstance(classes, str) or not all(isinstance(name, str) for name in (() if classes is None else classes)):
        raise ValueError(f"classes={classes!r}: must be a list of names")


def _input_side(
    backbone: Backbone | TimmBackbone, levels: tuple[int, ...] | None, input_side: int | None
) -> int | None:
    """Returns the side of the images that the network takes; None for any."""
    if levels is not None:
        if input_side is not None:
            raise ValueError(f"input_side={input_side}, levels={list(levels)}: a pyramid takes images of any side")
        return None
    side = CROP_SIDE if input_side is None else int(input_side)
    if side < backbone.smallest_input:
        raise ValueError(f"input_side={side}: the backbone needs at least {backbone.smallest_input}")
    return side


def _check_parameters(pooled: int, levels: tuple[int, ...], hidden: int | None, num_classes: int) -> None:
    sides = (pooled, num_classes) if hidden is None else (pooled, hidden, hidden, num_classes)
    parameters = sum((inputs + 1) * outputs for inputs, outputs in pairwise(sides))
    if parameters > _MAX_PARAMETERS:
        given, named = ("null", "fc8") if hidden is None else (hidden, "fc6, fc7 and fc8")
        raise ValueError(
            f"hidden={given}, levels={list(levels)}, num_classes={num_classes}: {named} would have "
            f"{parameters:,} parameters together, and must have at most {_MAX_PARAMETERS:,}"
        )


def weights_digest(network: SPPNet) -> str:
    """Returns a hash of a network's description and weights: 16 hexadecimal digits."""
    return _digest(network.description(), network.state_dict())


def backbone_digest(network: SPPNet) -> str:
    """Returns a hash of all that the maps of a network depend on, but for its paddings: 16 hexadecimal digits.

    That is its backbone, and how images become its input. The fully connected layers may be trained further.
    """
    description = {key: network.description()[key] for key in ("backbone", "input_mean", "input_std")}
    description["backbone"].pop("aligned", None)
    return _digest(description, network.backbone.state_dict())


def _digest(description: dict[str, Any], weights: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_network(network: SPPNet, path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint for `load_network`, atomically.

    It holds {"network": description, "state_dict": weights}, plain values and tensors only.
    """
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    with atomic_file(Path(path)) as file:
        torch.save({"network": network.description(), "state_dict": weights}, file)


def take_weights(network: SPPNet, source: SPPNet) -> None:
    """Copies weights of `source`: of the backbone, and of fc6, fc7 and fc8 up to the first that has another meaning.

    fc6 is taken if the pyramid and `hidden` are the same, fc7 with it, fc8 if the classes are the same too.

    Raises ValueError if the backbones differ.
    """
    if source.backbone.options != network.backbone.options:
        raise ValueError(f"has the backbone {source.backbone.options}, and this network {network.backbone.options}")
    network.backbone.load_state_dict(source.backbone.state_dict())
    if (source.levels, source.hidden, source.input_side) != (network.levels, network.hidden, network.input_side):
        return
    if network.hidden is not None:
        network.fc6.load_state_dict(source.fc6.state_dict())
        network.fc7.load_state_dict(source.fc7.state_dict())
    if source.classes is not None and source.classes == network.classes:
        network.fc8.load_state_dict(source.fc8.state_dict())


def load_network(path: str | os.PathLike[str]) -> SPPNet:
    """Loads a trained network: on the CPU, in eval mode.

    Safe for files from strangers: it reads plain values and tensors only (`weights_only=True`, or safetensors), runs no
    code, and takes no memory for weights that the file does not hold.

    Args:
        path: a run directory (its last checkpoint), a checkpoint, a folder that `publish` wrote, or "hf://OWNER/NAME",
            perhaps with "@REVISION", which is downloaded from the Hugging Face Hub. Nothing else is.

    Raises FileNotFoundError if there is no such file, ValueError if it holds no network, and what
    `sppnet.runtime.published.local_folder` raises.
    """
    file = checkpoint_file(local_folder(path))
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint")
    try:
        description, state = _read_published(file) if file.name == WEIGHTS_FILE else _read_checkpoint(file)
        with torch.device("meta"):
            outline = SPPNet.from_description(description)
        _check_weights(outline.state_dict(), state, file.stat().st_size)
        network = SPPNet.from_description(description)
        network.load_state_dict(state)
    except Exception as error:  # torch.load fails on truncated and foreign files in a dozen ways
        raise ValueError(f"{file}: not a checkpoint of sppnet ({first_line(error)})") from error
    return network.eval()


def _read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the description and the weights in a checkpoint."""
    # Mapped, not read: a compressed entry can expand to any size, and the optimizer's state is not needed.
    checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return checkpoint["network"], state


def _read_published(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the description and the weights of a published network."""
    config = read_published(file.parent)
    if config["weights"] != file_digest(file):
        raise ValueError(f"{CONFIG_FILE} describes other weights than these; download or publish both again")
    return config["network"], load_file(file)


def _check_weights(expected: dict[str, Tensor], state: dict[str, Tensor], file_bytes: int) -> None:
    """Raises ValueError unless a file of that size holds exactly the expected weights."""
    if missing := expected.keys() - state.keys():
        raise ValueError(f"{min(missing)} is missing")
    if unknown := state.keys() - expected.keys():
        raise ValueError(f"{min(unknown)} is not a weight of the network that it describes")
    for name, value in state.items():
        like = expected[name]
        if value.shape != like.shape:
            raise ValueError(f"{name} has shape {list(value.shape)}, and {list(like.shape)} in its description")
        small = value.is_floating_point() and value.element_size() < 2  # would become four times as large
        if value.is_floating_point() != like.is_floating_point() or small or value.layout != torch.strided:
            raise ValueError(f"{name} is of {value.dtype} and {value.layout}")
    # Strides of 0, and tensors that share their memory, let a small file hold large weights.
    if (weights := sum(value.nbytes for value in state.values())) > file_bytes:
        raise ValueError(f"{weights:,} bytes of weights in a file of {file_bytes:,}")
