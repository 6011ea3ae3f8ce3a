"""A moving average of the weights: updated after every step, validated, and saved as the network of the run."""

from typing import Any

import torch

from sppnet.network import SPPNet

_PREFIX = "network."  # of the weights in a checkpoint, as `load_network` reads them
_RAW = "trained_weights"  # the key in a checkpoint of the weights that the optimizer changes


class WeightAverage:
    """The moving average of a network's weights and buffers, by timm's ModelEmaV3.

    In the first steps the decay is lower: 1 - (1 + step) ** (-2 / 3), as timm warms it up, so that the average soon
    forgets the initial weights. It is a function of the step.

    Args:
        network: that is trained. Its average begins as a copy, on the same device.
        decay: the share of the old average that a step keeps, 0..1.
    """

    def __init__(self, network: SPPNet, decay: float) -> None:
        import timm.utils  # takes seconds

        self._average = timm.utils.ModelEmaV3(  # type: ignore[attr-defined]
            network, decay=decay, use_warmup=True
        )
        self.network: SPPNet = self._average.module  # in eval mode, not compiled
        self.network.requires_grad_(False)

    def update(self, network: SPPNet, step: int) -> None:
        """Moves the average towards the weights of `network` after a step, counted from 1."""
        self._average.update(network, step=step)

    def to(self, device: torch.device) -> None:
        """Moves the average to a device."""
        self.network.to(device)

    def share_buffers(self) -> None:
        """Gives all processes the buffers of the first one, whose average is saved. Every process has to call it.

        BatchNorm has other statistics in every process, and validation would depend on where a run was resumed.
        """
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, src=0)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Puts the average in the place of the weights in Lightning's checkpoint, and the weights beside it."""
        weights = checkpoint["state_dict"]
        checkpoint[_RAW] = {name: value for name, value in weights.items() if name.startswith(_PREFIX)}
        average = {f"{_PREFIX}{name}": value for name, value in self.network.state_dict().items()}
        checkpoint["state_dict"] = {**weights, **average}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Reads the average, and puts the weights back in their place for Lightning to load."""
        average = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith(_PREFIX)}
        self.network.load_state_dict({name.removeprefix(_PREFIX): value for name, value in average.items()})
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **checkpoint.pop(_RAW)}
