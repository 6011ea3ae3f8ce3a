"""Copies from the host to a device."""

import torch
from torch import Tensor


def sent_to(values: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the host on a device, for whose earlier work the host does not wait.

    Copies to a GPU from memory that is not pinned may wait for everything that the GPU was asked for before.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
