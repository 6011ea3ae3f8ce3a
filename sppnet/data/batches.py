"""Batches of images on any device: mirror, colour, input size, network input.

Letters: N images, h and w pixels of height and width. Channels are R, G, B; values run from 0 to 255 until
`to_network_input`. The functions are pure, take their random numbers from the caller and never make the host wait for
the device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mirror(images: Tensor, flags: Tensor) -> Tensor:
    """(N, 3, h, w) with the images whose flag is set (bool (N,)) mirrored left to right."""
    if _is_eager_on_cpu(images):
        # One copy, and half of it again: an eighth of the time of making both for all and choosing.
        result = images.clone()
        for i in flags.nonzero().flatten().tolist():
            result[i] = images[i].flip(-1)
        return result
    return torch.where(flags[:, None, None, None], images.flip(-1), images)


# The colour altering of Krizhevsky et al. 2012, section 4.1: eigenvalues and eigenvectors of the covariance of the
# RGB values of ImageNet in [0, 1], constants in common use. Rows are R, G, B; columns belong to the eigenvalues.
COLOR_STANDARD_DEVIATION = 0.1
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def alter_color(images: Tensor, amounts: Tensor) -> Tensor:
    """float (N, 3, h, w) in 0..255 with one colour added to all pixels of an image; amounts: float (N, 3).

    The colour is 255 * sum over i of amount_i * eigenvalue_i * eigenvector_i. Draw the amounts anew for every
    image and epoch, normal with mean 0 and standard deviation COLOR_STANDARD_DEVIATION. Nothing is clipped.
    """
    basis = [[255 * value * entry for value, entry in zip(_EIGENVALUES, row, strict=True)] for row in _EIGENVECTORS]
    shifts = torch.stack([(amounts * _on_device(row, amounts)).sum(1) for row in basis], dim=1)  # (N, 3)
    return images + shifts[:, :, None, None].to(images.dtype)


def resize_batch(images: Tensor, size: int) -> Tensor:
    """uint8 or float (N, 3, h, w) -> float (N, 3, size, size): bilinear, antialiased.

    Where nothing is to do it is the same tensor, in its own dtype.
    """
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


def to_network_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 or float (N, 3, h, w) -> float32 (images - mean) / std in the same memory format.

    All in 0..255, mean and std per channel.
    """
    if images.is_contiguous(memory_format=torch.channels_last) and _is_eager_on_cpu(images):
        count, channels, height, width = images.shape
        # Mean and std of a whole row: loops over the three channels of a pixel would take ten times as long.
        shift, scale = (torch.tensor(values, dtype=torch.float32).repeat(width) for values in (mean, std))
        result = torch.empty(count, height, width * channels)
        # One image after the other, in place: it stays in the cache between the steps.
        for image, rows in zip(images.permute(0, 2, 3, 1).flatten(2), result, strict=True):
            rows.copy_(image).sub_(shift)
            if any(value != 1 for value in std):
                rows.div_(scale)
        return result.view(count, height, width, channels).permute(0, 3, 1, 2)
    images = images.float()
    return (images - _on_device(mean, images)[:, None, None]) / _on_device(std, images)[:, None, None]


def training_input(
    pixels: Tensor, mirrored: Tensor, color: Tensor | None, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """A batch of crops as the network trains on it: mirrored, colours altered, at the size of the epoch.

    uint8 (N, h, w, 3), bool (N,), float (N, 3) or None for no altering -> float32 (N, 3, size, size) in channels_last.
    """
    images = mirror(pixels.permute(0, 3, 1, 2), mirrored)
    if color is not None:
        images = alter_color(images.float(), color)
    images = to_network_input(resize_batch(images, size), mean, std)
    return images.contiguous(memory_format=torch.channels_last)


def _is_eager_on_cpu(images: Tensor) -> bool:
    """Where loops over images cost next to nothing."""
    return images.device.type == "cpu" and not torch.compiler.is_compiling() and not images.requires_grad


def _on_device(values: Sequence[float], like: Tensor) -> Tensor:
    """(len(values),) like `like`, filled in on its device: the host would wait for the copy of a host tensor."""
    return torch.stack([like.new_full((), value) for value in values])
