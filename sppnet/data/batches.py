"""Functions on batches of images, on any device: mirroring, colour, input size, network input.

Letters: N images, h and w pixels of height and width. Channels are R, G, B; values run from 0 to 255 until
`to_network_input`. The functions are pure, take their random numbers from the caller and never make the host wait for
the device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mirror(images: Tensor, flags: Tensor) -> Tensor:
    """Mirrors the images whose flag is set left to right: (N, 3, h, w), bool (N,) -> (N, 3, h, w)."""
    if _is_eager_on_cpu(images):
        # Copies all images once and the mirrored ones again: an eighth of the time of `torch.where` below.
        result = images.clone()
        for i in flags.nonzero().flatten().tolist():
            result[i] = images[i].flip(-1)
        return result
    return torch.where(flags[:, None, None, None], images.flip(-1), images)


# The colour altering of Krizhevsky et al. 2012, section 4.1: eigenvalues and eigenvectors of the covariance of
# ImageNet's RGB values in [0, 1], the constants in common use. Rows are R, G, B; columns belong to the eigenvalues.
COLOR_STANDARD_DEVIATION = 0.1
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def alter_color(images: Tensor, amounts: Tensor) -> Tensor:
    """Adds one colour to all pixels of each image: (N, 3, h, w) in 0..255 -> float32 of the same shape, not clipped.

    The colour is 255 * sum over i of amount_i * eigenvalue_i * eigenvector_i.

    Args:
        images: uint8 or float32 (N, 3, h, w).
        amounts: float (N, 3), drawn for every image and epoch from a normal distribution with mean 0 and standard
            deviation COLOR_STANDARD_DEVIATION.
    """
    basis = [[255 * value * entry for value, entry in zip(_EIGENVALUES, row, strict=True)] for row in _EIGENVECTORS]
    shifts = torch.stack([(amounts * _on_device(row, amounts)).sum(1) for row in basis], dim=1).float()  # (N, 3)
    if images.is_contiguous(memory_format=torch.channels_last) and _is_eager_on_cpu(images):
        return _rows_plus(images, shifts)
    return images.float() + shifts[:, :, None, None]


def _rows_plus(images: Tensor, shifts: Tensor) -> Tensor:
    """Adds (N, 3) to channels_last images on the CPU, row by row: the same numbers, faster, as below."""
    count, channels, height, width = images.shape
    result = torch.empty(count, height, width * channels)
    for image, shift, rows in zip(images.permute(0, 2, 3, 1).flatten(2), shifts, result, strict=True):
        rows.copy_(image).add_(shift.repeat(width))
    return result.view(count, height, width, channels).permute(0, 3, 1, 2)


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resizes images: uint8 or float (N, 3, h, w) -> float (N, 3, size, size), bilinear, antialiased.

    Returns the same tensor, in its own dtype, if the images have this size already.
    """
    if images.shape[-2:] == (size, size):
        return images
    images = images.float()
    if _is_eager_on_cpu(images):
        images = images.contiguous()  # torch takes twice as long for channels_last
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def to_network_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalizes images: uint8 or float (N, 3, h, w) -> float32 (images - mean) / std, in the same memory format.

    Images, mean and std are in 0..255, mean and std per channel.
    """
    if images.is_contiguous(memory_format=torch.channels_last) and _is_eager_on_cpu(images):
        return _rows_to_network_input(images, mean, std)
    images = images.float()
    return (images - _on_device(mean, images)[:, None, None]) / _on_device(std, images)[:, None, None]


def _rows_to_network_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`to_network_input` for channels_last on the CPU, row by row: the same numbers, faster."""
    count, channels, height, width = images.shape
    # Mean and std of a whole row: loops over the three channels of a pixel would take ten times as long.
    shift, scale = (torch.tensor(values, dtype=torch.float32).repeat(width) for values in (mean, std))

    # One image after the other, in place: it stays in the cache between the steps.
    result = torch.empty(count, height, width * channels)
    for image, rows in zip(images.permute(0, 2, 3, 1).flatten(2), result, strict=True):
        rows.copy_(image).sub_(shift)
        if any(value != 1 for value in std):
            rows.div_(scale)
    return result.view(count, height, width, channels).permute(0, 3, 1, 2)


def training_input(
    pixels: Tensor, mirrored: Tensor, color: Tensor | None, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Turns crops into training input: mirrored, colours altered, resized, normalized.

    Args:
        pixels: uint8 (N, h, w, 3).
        mirrored: bool (N,), the images to mirror.
        color: float (N, 3), the amounts of `alter_color`; None leaves the colours unchanged.
        size: side of the result in pixels.
        mean: per channel, in 0..255.
        std: per channel, in 0..255.

    Returns:
        float32 (N, 3, size, size) in channels_last.
    """
    images = mirror(pixels.permute(0, 3, 1, 2), mirrored)
    if color is not None:
        images = alter_color(images, color)
    return to_network_input(resize_batch(images, size).contiguous(memory_format=torch.channels_last), mean, std)


def _is_eager_on_cpu(images: Tensor) -> bool:
    """Whether Python loops over images cost next to nothing."""
    return images.device.type == "cpu" and not torch.compiler.is_compiling() and not images.requires_grad


def _on_device(values: Sequence[float], like: Tensor) -> Tensor:
    """`values` as a tensor of the dtype and device of `like`, without a copy from the host, which would wait for it."""
    return torch.stack([like.new_full((), value) for value in values])
