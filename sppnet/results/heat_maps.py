"""Values laid over an image as colours."""

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

_STRONGEST = 0.85  # opacity of the largest value
_BELOW = (40.0, 90.0, 255.0)  # the colour of values below 0


def heat_map(image: Tensor, values: Tensor) -> Tensor:
    """Lays values over an image: uint8 (3, h, w), float (h, w) -> uint8 (3, h, w).

    The image becomes grey. The larger a value in size, the more opaque is its colour: from red to yellow above 0, blue
    below 0. The scale is that of the largest one; zeros have no colour.
    """
    from matplotlib import colormaps  # takes a second

    shares = values.float() / values.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    above = 255 * torch.from_numpy(colormaps["autumn"](shares.numpy())).float()[..., :3].permute(2, 0, 1)
    colors = torch.where(shares < 0, torch.tensor(_BELOW)[:, None, None], above)

    grey = rgb_to_grayscale(image, num_output_channels=3).float()
    return (grey + (colors - grey) * _STRONGEST * shares.abs()).round().to(torch.uint8)
