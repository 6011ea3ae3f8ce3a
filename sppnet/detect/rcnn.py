"""R-CNN's way beside SPP-net's: every window is cut out, warped to a square, and passed through the whole network.

Letters: K windows, s pixels of the square's side, d values of a feature.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.data.batches import to_network_input
from sppnet.geometry import CROP_SIDE
from sppnet.network import SPPNet
from sppnet.runtime.devices import sent_to

CONTEXT = 16  # pixels of the warped square around the window: arXiv:1311.2524, Appendix A


def warped_window(
    image: Tensor, window: np.ndarray, fill: Tensor, side: int = CROP_SIDE, context: int = CONTEXT
) -> Tensor:
    """Cuts a window with its surroundings out of an image, and resizes it to a square, whatever its aspect.

    The window itself is resized to `side` - 2 * `context` pixels; around it are `context` pixels of what surrounds it.
    Outside the image the square has the colour `fill`.

    Args:
        image: uint8 (3, h, w).
        window: x0, y0, x1, y1 in pixels, half-open, inside the image.
        fill: uint8 (3,); R-CNN takes the mean of the training images.
        side: s, of the square.
        context: pixels of the square on each side of the window.

    Returns uint8 (3, s, s).
    """
    # For each axis: the pixels of the image that are cut out, and the pixels of the square that they fill.
    spans = [
        _span(float(window[axis]), float(window[axis + 2]), image.shape[2 - axis], side, context) for axis in (0, 1)
    ]
    (x0, x1, left, right), (y0, y1, top, bottom) = spans
    square = fill[:, None, None].repeat(1, side, side)
    part = F.interpolate(image[None, :, y0:y1, x0:x1], (bottom - top, right - left), mode="bilinear", antialias=True)
    square[:, top:bottom, left:right] = part[0]
    return square


def _span(start: float, end: float, length: int, side: int, context: int) -> tuple[int, int, int, int]:
    """Returns the first and last pixel of the image to cut out, and those of the square to fill, all half-open."""
    scale = (end - start) / (side - 2 * context)  # pixels of the image per pixel of the square
    first, last = start - context * scale, end + context * scale
    cut_first, cut_last = max(0, round(first)), min(length, max(round(last), round(first) + 1))
    cut_first = min(cut_first, cut_last - 1)

    fill_first = min(side - 1, max(0, round((cut_first - first) / scale)))
    fill_last = max(fill_first + 1, min(side, round((cut_last - first) / scale)))
    return cut_first, cut_last, fill_first, fill_last


def warped_batches(
    network: SPPNet, image: Tensor, windows: np.ndarray, *, batch_size: int, side: int = CROP_SIDE
) -> Iterator[Tensor]:
    """Warps all windows of an image, and yields them in batches as input of the network.

    Arguments are those of `warped_features`. Yields float32 (N, 3, s, s), channels last, on the device of the network.
    """
    device, fill = network.fc8.weight.device, torch.tensor(network.input_mean).round().to(torch.uint8)
    for start in range(0, len(windows), batch_size):
        warped = [warped_window(image, window, fill, side) for window in windows[start : start + batch_size]]
        batch = sent_to(torch.stack(warped).contiguous(memory_format=torch.channels_last), device)
        yield to_network_input(batch, network.input_mean, network.input_std)


@torch.no_grad()
def warped_features(
    network: SPPNet,
    image: Tensor,
    windows: np.ndarray,
    head: Callable[[Tensor], Tensor],
    *,
    autocast: torch.dtype | None = None,
    batch_size: int = 64,
    side: int = CROP_SIDE,
) -> Tensor:
    """Computes features of windows as R-CNN does: one forward pass of the whole network per window.

    Args:
        network: on its device, in eval mode.
        image: uint8 (3, h, w), on the CPU.
        windows: (K, 4).
        head: pooled vectors (N, C * B) -> (N, d).
        autocast: the dtype of convolutions, or None for float32.
        batch_size: windows per forward pass.
        side: of the warped windows.

    Returns (K, d).
    """
    device, features = network.fc8.weight.device, []
    if not len(windows):
        return head(torch.empty(0, network.pooled_length, device=device))
    for images in warped_batches(network, image, windows, batch_size=batch_size, side=side):
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            maps = network.maps(images)
        features.append(head(network.pool(maps.float())))
    return torch.cat(features)
