"""Optimizers by timm's names, with parameter groups for weight decay and for rates that differ by layer."""

import difflib
import re
from typing import Any

import torch
from torch import nn

from sppnet.classify.recipe import Recipe
from sppnet.network import SPPNet
from sppnet.runtime.names import first_line
from sppnet.timm_backbone import TimmBackbone

# Optimizers of timm that this training cannot run or cannot resume to the bit, and why.
_REFUSED = {
    "adahessian": "needs second derivatives, which this training does not compute",
}
_OWN_KEYS = {"lr": "learning_rate", "momentum": "momentum", "weight_decay": "weight_decay"}


def build_optimizer(network: SPPNet, recipe: Recipe) -> torch.optim.Optimizer:
    """Returns the optimizer of a recipe for all parameters of a network that require gradients.

    The rate of a group is the recipe's, times the group's `lr_scale` where it has one.

    Raises ValueError, in one line, for an optimizer or an option that does not exist.
    """
    return _optimizer(parameter_groups(network, recipe), recipe)


def check_optimizer(recipe: Recipe) -> None:
    """Raises ValueError if the recipe's optimizer or its options cannot be used. Tries one step of a tiny network."""
    if recipe.optimizer == "sgd" and not recipe.optimizer_options:
        return

    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2))
        optimizer = _optimizer([{"params": list(network.parameters())}], recipe)
        if not recipe.optimizer_options:
            return  # its own defaults work, and the first step of kron compiles for a minute
        network(torch.ones(1, 1, 2, 2)).sum().backward()
        try:
            optimizer.step()
        except Exception as error:  # options of wrong types fail in any way
            raise _wrong_options(recipe, first_line(error)) from error


def parameter_groups(network: SPPNet, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns the groups of the parameters that require gradients: weights decay, biases and other vectors do not.

    With `layer_decay` each layer has groups of its own, with `full_rate_inputs` each wide layer of the head, and with
    `backbone_rate` or `frozen_epochs` the backbone. Their `lr_scale` is the factor on the rate.
    """
    one_rate = recipe.layer_decay is None and recipe.full_rate_inputs is None and recipe.backbone_rate == 1
    if one_rate and not recipe.frozen_epochs:
        return _by_decay([p for p in network.parameters() if p.requires_grad], recipe)

    # By backbone and scale: fused SGD fails where some weights of a group were frozen before and others were not.
    parts: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for depth, names in enumerate(reversed(layers_of(network))):  # the last layer has the whole rate
        in_backbone = names[0].startswith("backbone.")
        parameters = [p for name in names if (p := network.get_parameter(name)).requires_grad]
        scale = recipe.backbone_rate if in_backbone else _width_factor(parameters, recipe)
        scale *= (recipe.layer_decay or 1.0) ** depth
        parts.setdefault((in_backbone, scale), []).extend(parameters)
    groups = [group | {"lr_scale": key[1]} for key, some in parts.items() for group in _by_decay(some, recipe)]
    return [group for group in groups if group["params"]]


def _width_factor(parameters: list[nn.Parameter], recipe: Recipe) -> float:
    """Returns the factor on the rate of a fully connected layer: smaller for one with many inputs.

    A step of Adam changes every weight by about the rate, whatever the gradient, and so an output by the rate times the
    sum of the inputs (arXiv:2203.03466: the rate of a layer in inverse proportion to its inputs).
    """
    inputs = max((p.shape[1] for p in parameters if p.ndim == 2), default=1)
    return min(1.0, (recipe.full_rate_inputs or inputs) / inputs)


def layers_of(network: SPPNet) -> list[list[str]]:
    """Returns the names of the parameters of each layer, from the first layer to fc8.

    A layer is a convolution or fully connected layer with the vectors that follow it, such as those of BatchNorm; of a
    timm model, what timm counts as one for its rates by layer: mostly a block.
    """
    backbone = network.backbone
    timms = _layers_by_timm(backbone) if isinstance(backbone, TimmBackbone) else []
    layers: dict[str, list[str]] = {}
    for name, parameter in network.named_parameters():
        if timms and name.startswith("backbone."):
            continue
        layer = name.rpartition(".")[0]
        if layers and layer not in layers and parameter.ndim <= 1:
            layer = next(reversed(layers))
        layers.setdefault(layer, []).append(name)
    return [*timms, *layers.values()]


def _layers_by_timm(backbone: TimmBackbone) -> list[list[str]]:
    """Returns the names of the parameters of each layer of a timm model, as timm's `param_groups_layer_decay` counts.

    It knows the layers of whole models only. Those that give feature maps have underscores in place of some dots in the
    names, or the whole model as a part.
    """
    import timm.optim  # takes seconds

    with torch.device("meta"):
        whole = timm.create_model(str(backbone.options["name"])).requires_grad_()
    groups = timm.optim.param_groups_layer_decay(whole, layer_decay=0.9)  # type: ignore[attr-defined]
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    by_name = {name.replace(".", "_"): scales[id(p)] for name, p in whole.named_parameters()}

    layers: dict[float, list[str]] = {}
    for name, _ in backbone.named_parameters():
        flat = re.sub(r"^body\.(model\.|body\.)?", "", name).replace(".", "_")
        layers.setdefault(by_name.get(flat, 1.0), []).append(f"backbone.{name}")  # unknown ones last, as timm does
    return [layers[scale] for scale in sorted(layers)]


def _by_decay(parameters: list[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """Returns the optimizer of a recipe for groups of parameters. Raises ValueError for wrong options."""
    options = recipe.optimizer_options or {}
    for key in _OWN_KEYS.keys() & options.keys():
        raise ValueError(f"recipe.optimizer_options={options}: set recipe.{_OWN_KEYS[key]} instead")
    if recipe.optimizer != "sgd":
        _check_name(recipe)
    try:
        return _sgd(groups, recipe) if recipe.optimizer == "sgd" else _optimizer_of_timm(groups, recipe)
    except Exception as error:  # options of wrong types fail in any way
        raise _wrong_options(recipe, first_line(error)) from error


def _sgd(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    options = {"fused": True, **(recipe.optimizer_options or {})}
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, **options)


def _optimizer_of_timm(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    import timm.optim  # takes seconds

    return timm.optim.create_optimizer_v2(  # type: ignore[attr-defined]
        groups,
        recipe.optimizer,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        **(recipe.optimizer_options or {}),
    )


def _check_name(recipe: Recipe) -> None:
    import timm.optim

    name = recipe.optimizer.lower()
    known = [str(other) for other in timm.optim.list_optimizers() if other not in _REFUSED]  # type: ignore[attr-defined]
    if name in _REFUSED:
        raise ValueError(f"recipe.optimizer={recipe.optimizer}: {_REFUSED[name]}")
    if name.removeprefix("lookahead_") not in known:
        close = ", ".join(difflib.get_close_matches(name, known, 6)) or "timm.optim.list_optimizers() shows all"
        raise ValueError(f"recipe.optimizer={recipe.optimizer}: timm has no such optimizer (close: {close})")


def _wrong_options(recipe: Recipe, reason: str) -> ValueError:
    given = f", recipe.optimizer_options={recipe.optimizer_options}" if recipe.optimizer_options else ""
    return ValueError(f"recipe.optimizer={recipe.optimizer}{given}: {reason}")
