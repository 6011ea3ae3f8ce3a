"""Feature maps of an image at several scales, and its windows pooled from them (arXiv:1406.4729v4, §4.1).

Every scale is one forward pass of the whole image. A window takes its cells from the map of one scale, the one at which
it comes nearest to the size of the crops that the network was trained on.

Letters: K windows, M different (scale, cells), C channels, (H, W) cells of a map, B bins of the pyramid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sppnet.backbones import Backbone
from sppnet.data.batches import to_network_input
from sppnet.data.images import resize_shorter_side
from sppnet.geometry import CROP_SIDE, cut_to_longest_aspect, size_at_shorter_side, windows_to_cells
from sppnet.network import SPPNet
from sppnet.runtime.devices import sent_to
from sppnet.runtime.names import check_names
from sppnet.timm_backbone import TimmBackbone
from sppnet.windows import MAX_POOLED_NUMBERS, mirrored_windows, pool_many_windows

LARGEST_SCALE = 4096  # in pixels

# Constants of the authors' release: the side of a window at its best scale, 13 cells of 16 pixels, and the pixels by
# which a window is made smaller on each side before it is rounded to cells.
_RELEASE_SIDE = 13 * 16
_RELEASE_SHRINK = 6.5


def nearest_scale(windows: np.ndarray, size: tuple[int, int], scales: Sequence[int]) -> np.ndarray:
    """Chooses the scale at which the area of each window, in pixels of the resized image, is nearest to 224 x 224.

    Args:
        windows: float64 (K, 4), x0, y0, x1, y1 in pixels of the image.
        size: (height, width) of the image.
        scales: shorter sides of the resized images.

    Returns:
        int64 (K,), indices of `scales`; of equally near scales the first.
    """
    height, width = size
    areas = np.prod(windows[:, 2:] - windows[:, :2], axis=1)
    resized = [float(np.prod(size_at_shorter_side(height, width, scale))) for scale in scales]
    # Multiplied by the pixels of the image: for windows of whole pixels these are exact integers.
    return np.abs(areas[:, None] * resized - float(CROP_SIDE**2 * height * width)).argmin(axis=1)


def release_scale(windows: np.ndarray, size: tuple[int, int], scales: Sequence[int]) -> np.ndarray:
    """Chooses scales as the authors' release does: as `nearest_scale`, but by the side, for windows of 208 x 208.

    The release takes the scale nearest to 208 * (shorter side of the image) / sqrt(area), rounded.
    """
    areas = np.prod(windows[:, 2:] - windows[:, :2], axis=1).clip(min=1)  # the release's windows have a pixel at least
    expected = np.floor(_RELEASE_SIDE * min(size) / np.sqrt(areas) + 0.5)
    return np.abs(np.array(scales) - expected[:, None]).argmin(axis=1)


def cells_of_centers(
    windows: np.ndarray, size: tuple[int, int], scale: int, backbone: Backbone | TimmBackbone
) -> np.ndarray:
    """Finds the cells whose centres lie inside windows: `windows_to_cells` at one scale.

    Args:
        windows: float64 (K, 4), x0, y0, x1, y1 in pixels of the image.
        size: (height, width) of the image.
        scale: shorter side of the resized image.
        backbone: of the network that made the map.

    Returns:
        int64 (K, 4), x0, y0, x1, y1 in half-open cells of the map.
    """
    resized = size_at_shorter_side(*size, scale)
    scaled = windows * np.tile(resized[::-1], 2) / np.tile(size[::-1], 2)
    return windows_to_cells(scaled, backbone.stride, backbone.offset, _map_size(backbone, resized))


def release_cells(
    windows: np.ndarray, size: tuple[int, int], scale: int, backbone: Backbone | TimmBackbone
) -> np.ndarray:
    """Finds cells as the authors' release does: windows are shrunk by 6.5 pixels and rounded to the nearest centres.

    Arguments and cells are those of `cells_of_centers`. The release counts pixels and cells from 1 and includes the
    last ones (utils/spm_pool/spm_pool_caffe_mex.cpp).
    """
    ratio = (scale - 1) / max(min(size) - 1, 1)
    starts, ends = windows[:, :2] * ratio + 1, (windows[:, 2:] - 1) * ratio + 1
    center, stride = float(backbone.offset) + 1, backbone.stride

    first = np.floor((starts - center + _RELEASE_SHRINK) / stride + 0.5) + 1
    last = np.ceil((ends - center - _RELEASE_SHRINK) / stride - 0.5) + 1
    empty, middle = first > last, np.floor((first + last) / 2)
    first, last = np.where(empty, middle, first), np.where(empty, middle, last)

    cells = np.array(_map_size(backbone, size_at_shorter_side(*size, scale))[::-1])
    return np.hstack([first.clip(1, cells) - 1, last.clip(1, cells)]).astype(np.int64)


def _map_size(backbone: Backbone | TimmBackbone, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in cells of the map of an image of `size` pixels."""
    return backbone.map_side(size[0]), backbone.map_side(size[1])


# How windows choose their scale, and their cells at that scale: those of the paper first, then those of the release.
SCALE_RULES: dict[str, Callable[..., np.ndarray]] = {"area": nearest_scale, "release": release_scale}
CELL_RULES: dict[str, Callable[..., np.ndarray]] = {"centers": cells_of_centers, "release": release_cells}


@dataclass(frozen=True, kw_only=True)
class WindowRules:
    """The scales of maps, and how windows are found on them.

    scales: shorter sides of the resized images in pixels, each once. The paper's are {688} and these five.
    scale_rule: a name of SCALE_RULES.
    cell_rule: a name of CELL_RULES.
    context: factor by which the sides of a window grow, around its centre, before it is pooled. 1 in the paper; with
        more, features see what surrounds an object, as a classifier's training images show it.

    Raises ValueError for other names, for scales that are empty, repeated or below 1, and a context out of 1 to 4.
    """

    scales: tuple[int, ...] = (480, 576, 688, 864, 1200)
    scale_rule: str = "area"
    cell_rule: str = "centers"
    context: float = 1.0

    def __post_init__(self) -> None:
        check_names("scale_rule", [self.scale_rule], SCALE_RULES)
        check_names("cell_rule", [self.cell_rule], CELL_RULES)
        if not self.scales or len(set(self.scales)) < len(self.scales) or min(self.scales) < 1:
            raise ValueError(f"scales={list(self.scales)}: must be sides in pixels, each once, such as [688]")
        if not 1 <= self.context <= 4:
            raise ValueError(f"context={self.context}: must be from 1 to 4")


@dataclass(frozen=True, eq=False)
class WindowCells:
    """The cells of the windows of one image, every (scale, cells) once, sorted.

    scales: int64 (M,), indices of the maps.
    cells: int64 (M, 4), x0, y0, x1, y1 in half-open cells of these maps.
    places: int64 (K,), for every window its row in `scales` and `cells`.
    """

    scales: np.ndarray
    cells: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.scales)


def find_cells(
    windows: np.ndarray,
    size: tuple[int, int],
    backbone: Backbone | TimmBackbone,
    rules: WindowRules,
    *,
    mirrored: bool = False,
) -> WindowCells:
    """Finds the scale and the cells of every window of an image.

    Args:
        windows: numbers (K, 4), x0, y0, x1, y1 in pixels of the image, half-open. What lies outside of the image, or of
            the part that LONGEST_ASPECT leaves of it, is cut off.
        size: (height, width) of the image.
        backbone: of the network that makes the maps.
        rules: the scales and rules.
        mirrored: whether the maps are those of the mirror image.

    Raises ValueError for windows that are not (K, 4), inside out or not finite.
    """
    boxes, cut = _windows_in_cut(windows, size, rules.context)
    if mirrored:
        boxes = mirrored_windows(boxes, cut[1])
    scales = SCALE_RULES[rules.scale_rule](boxes, cut, rules.scales)
    cells = np.empty((len(boxes), 4), np.int64)
    for i in np.unique(scales).tolist():
        cells[scales == i] = CELL_RULES[rules.cell_rule](boxes[scales == i], cut, rules.scales[i], backbone)

    rows, places = np.unique(np.column_stack([scales, cells]), axis=0, return_inverse=True)
    return WindowCells(rows[:, 0], rows[:, 1:], places.reshape(-1))


def _windows_in_cut(windows: np.ndarray, size: tuple[int, int], context: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns windows in pixels of the part that `resize_shorter_side` keeps of an image, and the size of that part.

    They are enlarged by `context`, as far as the part reaches.
    """
    boxes = np.asarray(windows, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"windows of shape {boxes.shape}: must be (K, 4)")
    wrong = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, :2] <= boxes[:, 2:]).all(axis=1))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"window {row} {boxes[row].tolist()}: must be finite (x0, y0, x1, y1), x0 <= x1 and y0 <= y1")

    margin = (context - 1) / 2 * (boxes[:, 2:] - boxes[:, :2])
    boxes = np.hstack([boxes[:, :2] - margin, boxes[:, 2:] + margin])
    height, width = cut_to_longest_aspect(*size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    boxes = (boxes - [left, top, left, top]).clip(0, [width, height, width, height])
    return boxes, (height, width)


def check_scales(network: SPPNet, scales: Sequence[int]) -> None:
    """Raises ValueError for a network that makes no maps of whole images, and for scales that do not suit it."""
    if network.input_side is not None:
        side = network.input_side
        raise ValueError(f"the network has no pyramid: it takes {side} x {side} images only, and cannot pool windows")
    if network.training:
        raise ValueError("the network is in training mode, in which maps may be random; call eval() first")
    smallest = network.backbone.smallest_input
    for scale in scales:
        if not smallest <= scale <= LARGEST_SCALE:
            raise ValueError(f"scales={list(scales)}: {scale} must be from {smallest} to {LARGEST_SCALE} pixels")


def image_maps(
    network: SPPNet,
    image: Tensor,
    scales: Sequence[int],
    *,
    mirrored: bool = False,
    autocast: torch.dtype | None = None,
) -> list[Tensor]:
    """Computes the feature maps of an image at several scales, one forward pass each.

    Args:
        network: on its device, in eval mode; `network.aligned()` for the paddings of Appendix A.
        image: uint8 (3, h, w).
        scales: shorter sides of the resized images in pixels.
        mirrored: whether to mirror the image.
        autocast: the dtype of convolutions, or None for float32.

    Returns:
        float16 (1, C, H, W) per scale, in channels_last on the device of the network: always float16, so that results
        are the same from maps that were kept on disk.

    Raises ValueError as `check_scales` does, and for maps that are not finite in float16.
    """
    check_scales(network, scales)
    return [map_of(network, pixels, mirrored=mirrored, autocast=autocast) for pixels in resized(image, scales)]


def resized(image: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """Resizes an image to several scales: uint8 (3, h, w) -> uint8 (h', w', 3) each."""
    return [resize_shorter_side(image, scale).permute(1, 2, 0).contiguous() for scale in scales]


@torch.no_grad()  # in inference mode autocast would convert every weight again in every call
def map_of(network: SPPNet, pixels: Tensor, *, mirrored: bool, autocast: torch.dtype | None) -> Tensor:
    """Computes the map of a resized image: uint8 (h, w, 3) -> float16 (1, C, H, W), as `image_maps` does."""
    device = network.fc8.weight.device
    images = sent_to(pixels[None], device).permute(0, 3, 1, 2)
    images = images.flip(-1) if mirrored else images
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        maps = network.maps(to_network_input(images, network.input_mean, network.input_std))
    maps = maps.half().contiguous(memory_format=torch.channels_last)
    if not maps.isfinite().all():
        raise ValueError("its feature maps are not finite, or beyond the range of float16; the network is damaged")
    return maps


def pool_windows_at_scales(
    maps: Sequence[Tensor], found: WindowCells, levels: Sequence[int], head: Callable[[Tensor], Tensor]
) -> Tensor:
    """Pools the windows of an image from its maps, and applies `head` to the pooled vectors, equal ones once.

    Args:
        maps: (1, C, H, W) per scale.
        found: the cells of K windows on these maps.
        levels: the pyramid.
        head: float32 (M', C * B) -> (M', D), row by row; called for chunks of at most
            `sppnet.windows.MAX_POOLED_NUMBERS` numbers, so that the memory does not grow with K.

    Returns:
        (K, D).
    """
    numbers = maps[0].shape[1] * sum(n * n for n in levels)
    at_once = max(1, MAX_POOLED_NUMBERS // numbers)
    results = []
    for start in range(0, max(len(found), 1), at_once):  # without windows head is called once, to learn D
        scales, cells = found.scales[start : start + at_once], found.cells[start : start + at_once]
        pooled = torch.empty(len(cells), numbers, device=maps[0].device)
        for i in np.unique(scales).tolist():
            first, last = np.searchsorted(scales, [i, i + 1])
            pooled[first:last] = pool_many_windows(maps[i], cells[first:last], levels)
        results.append(head(pooled))
    # Joining would copy the features of the only chunk.
    joined = results[0] if len(results) == 1 else torch.cat(results)
    return joined[sent_to(torch.from_numpy(found.places), joined.device)]
