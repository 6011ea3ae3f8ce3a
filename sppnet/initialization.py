"""Initial weights of networks, which belong together with the scale of their inputs."""

import torch
from torch import nn

from sppnet.backbones import Convolution


@torch.no_grad()
def _initialize_as_paper(network: nn.Module) -> None:
    """Draws Gaussian weights of standard deviation 0.01, for inputs of 0..255 minus the mean.

    Biases are 0.1 in conv2, conv4, conv5, fc6 and fc7, and 0 elsewhere. AlexNet and the authors' release use 1; with 1
    the loss stays flat for long (Caffe's AlexNet notes the same and uses 0.1).
    A timm backbone keeps timm's own initialization.
    """
    for name, module in network.named_modules():
        if isinstance(module, (Convolution, nn.Linear)) and not name.startswith("backbone.body"):
            nn.init.normal_(module.weight, std=0.01)
            raised = name.split(".")[-1] in {"conv2", "conv4", "conv5", "fc6", "fc7"}
            assert module.bias is not None
            nn.init.constant_(module.bias, 0.1 if raised else 0.0)
    _draw_linear_classifier(network)


@torch.no_grad()
def _initialize_by_fan_in(network: nn.Module) -> None:
    """Draws Gaussian weights of variance 2 / fan-in, with zero biases, for inputs of unit variance.

    The last layer starts at standard deviation 0.01, so that the loss starts at ln(num_classes).
    A timm backbone keeps timm's own initialization.
    """
    for name, module in network.named_modules():
        if isinstance(module, (Convolution, nn.Linear)) and not name.startswith("backbone.body"):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.normal_(network.get_parameter("fc8.weight"), std=0.01)
    _draw_linear_classifier(network)


def _draw_linear_classifier(network: nn.Module) -> None:
    """Draws fc8 of a network without fc6 and fc7 with a standard deviation of 0.02, or 10 / fan-in if that is less.

    0.02 is timm's, for one value per channel. Pyramids have tens of thousands of values, of about 1 each: with 0.02,
    their logits would differ by several units, and the loss would start far above ln(num_classes).
    """
    if not hasattr(network, "fc6"):
        weight = network.get_parameter("fc8.weight")
        nn.init.normal_(weight, std=min(0.02, 10 / weight.shape[1]))


def _keep_as_built(network: nn.Module) -> None:
    """Does nothing, because the weights come from a checkpoint."""


INITIALIZATIONS = {"paper": _initialize_as_paper, "fan_in": _initialize_by_fan_in, "none": _keep_as_built}
