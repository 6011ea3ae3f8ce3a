"""Windows of an image, pooled from its feature maps: pixels -> cells -> pooled vectors.

Testing with many views asks for many windows of one image. Its maps are computed once, windows that cover the same
cells are pooled once, and the pooled vectors are consumed in chunks to bound the memory.

Letters: N images of equal size, C channels, (H, W) cells of the map, K windows, B bins of the pyramid.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sppnet.geometry import crop_to_cells, windows_to_cells
from sppnet.network import SPPNet
from sppnet.pyramid import pool_windows

MAX_POOLED_NUMBERS = 1 << 25  # of one chunk: 128 MiB as float32


def mirrored_windows(windows: np.ndarray, width: int) -> np.ndarray:
    """Where windows (K, 4) of an image of `width` pixels lie in its mirror image."""
    x0, y0, x1, y1 = windows.T
    return np.stack([width - x1, y0, width - x0, y1], axis=1)


def pool_image_windows(
    network: SPPNet,
    maps: Tensor,
    windows: np.ndarray,
    head: Callable[[Tensor], Tensor],
    *,
    crop_side: int | None = None,
) -> Tensor:
    """Pools windows from the maps of whole images, and applies `head` to the pooled vectors.

    Args:
        network: its backbone made `maps`, and its pyramid pools them.
        maps: (N, C, H, W).
        windows: (K, 4) x0, y0, x1, y1 in pixels of the images, the same for all N.
        head: pooled vectors (M, C * B) -> (M, D), row by row; called for chunks of at most MAX_POOLED_NUMBERS numbers.
        crop_side: the windows stand for crops of this side in pixels, and take as many cells as the map of such a crop
            has (`crop_to_cells`). None: they take the cells whose centres lie inside them (`windows_to_cells`).

    Returns:
        (N, K, D).

    Raises ValueError for windows that are inside out or not finite.
    """
    cells = _cells(network, windows, (maps.shape[2], maps.shape[3]), crop_side)
    different, place = np.unique(cells, axis=0, return_inverse=True)

    images = torch.arange(len(maps)).repeat_interleave(len(different))
    rows = torch.cat([images[:, None], torch.from_numpy(different).repeat(len(maps), 1)], dim=1).to(maps.device)
    rows_per_chunk = max(1, MAX_POOLED_NUMBERS // network.fc6.in_features)
    levels = network.pyramid.levels
    results = torch.cat([head(pool_windows(maps, chunk, levels)) for chunk in rows.split(rows_per_chunk)])

    return results.unflatten(0, (len(maps), -1))[:, torch.from_numpy(place.reshape(-1)).to(maps.device)]


def _cells(network: SPPNet, windows: np.ndarray, map_size: tuple[int, int], crop_side: int | None) -> np.ndarray:
    """int64 (K, 4): the cells of every window."""
    backbone = network.backbone
    if crop_side is None:
        return windows_to_cells(windows, backbone.stride, backbone.offset, map_size)
    side = backbone.map_side(crop_side)
    return np.array(
        [crop_to_cells(tuple(window), backbone.stride, (side, side), map_size) for window in windows.tolist()]
    )
