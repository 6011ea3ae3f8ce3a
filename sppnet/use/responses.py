"""The images to which the filters of a layer respond most strongly: arXiv:1406.4729v4, Figure 2.

Shape letters: N images of equal size, F filters, (h, w) cells of a map, K images kept for each filter.
"""

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sppnet.data.inputs import load_groups
from sppnet.data.sources import Images
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.names import printable
from sppnet.runtime.processes import explained_loader_failures
from sppnet.runtime.progress import Progress
from sppnet.use.network_views import NetworkView, network_input


class StrongestResponses:
    """The K images with the strongest response of every filter, each with the cell of that response.

    Maps are added a few images at a time, in any order, and not kept. Of equal responses, the image that comes first in
    the data set is stronger, and in an image the cell that comes first, row by row. What is not above 0 is no response.

    Args:
        filters: F.
        most: K.

    Attributes:
        values: float32 (F, K), the responses, the strongest first; -inf where fewer than K images have any.
        images: int64 (F, K), the indices of the images.
        cells: int64 (F, K, 2), x and y of the cells.
    """

    def __init__(self, filters: int, most: int) -> None:
        self.most = most
        self.values = np.full((filters, most), -np.inf, np.float32)
        self.images = np.full((filters, most), np.iinfo(np.int64).max)
        self.cells = np.zeros((filters, most, 2), np.int64)

    def add(self, images: Sequence[int], maps: Tensor) -> None:
        """Adds the maps of images that were not added before.

        Args:
            images: their N indices.
            maps: float (N, F, h, w), finite.
        """
        strongest, places = maps.flatten(2).max(dim=2)  # of equal values the first one
        values = strongest.float().cpu().numpy().T
        values = np.where(values > 0, values, -np.float32(np.inf))
        rows, columns = np.divmod(places.cpu().numpy().T, maps.shape[3])

        indices = np.broadcast_to(np.asarray(images, np.int64), values.shape)
        values = np.concatenate([self.values, values], axis=1)
        indices = np.concatenate([self.images, indices], axis=1)
        cells = np.concatenate([self.cells, np.stack([columns, rows], axis=2)], axis=1)

        order = np.lexsort((indices, -values), axis=1)[:, : self.most]
        self.values, self.images = (np.take_along_axis(array, order, axis=1) for array in (values, indices))
        self.cells = np.take_along_axis(cells, order[:, :, None], axis=1)

    def dead(self) -> list[int]:
        """Returns the filters that respond to no image."""
        return np.flatnonzero(self.values[:, 0] == -np.inf).tolist()

    def strongest_filters(self, most: int) -> list[int]:
        """Returns the filters with the strongest responses, the strongest first; at most `most`, none that is dead."""
        order = np.argsort(-self.values[:, 0], kind="stable")
        return [int(i) for i in order[:most] if self.values[i, 0] > -np.inf]


def find_strongest(
    network: SPPNet, images: Images, layer: str, view: NetworkView, *, most: int, hardware: Hardware
) -> StrongestResponses:
    """Finds the strongest responses of every filter of a layer, from one forward pass per image up to that layer.

    Args:
        network: on its device, in eval mode.
        images: the images.
        layer: one that has maps.
        view: what the network sees of an image.
        most: images to keep for each filter.
        hardware: one device.

    Raises UnreadableImage for an image that cannot be read, and ValueError for responses that are not finite.
    """
    network = network.to(memory_format=torch.channels_last)
    strongest, indices, autocast = None, range(len(images)), hardware.autocast
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(hardware.device, autocast, enabled=autocast is not None))
        progress = stack.enter_context(Progress(f"responses of {layer}", len(images)))
        stack.enter_context(explained_loader_failures("hardware.workers"))
        groups = load_groups(
            images, view, indices, pixels=view.pixels, per_pass=hardware.pixels, workers=hardware.loaders
        )
        for group in stack.enter_context(contextlib.closing(groups)):
            pixels = torch.stack([inputs.tensors[0] for inputs in group]).permute(0, 3, 1, 2)
            maps = network.layer_outputs(network_input(network, pixels), [layer])[layer].float()
            added = [inputs.image_index for inputs in group]
            _check_finite(maps, layer, [images.name(i) for i in added])
            strongest = strongest or StrongestResponses(maps.shape[1], most)
            strongest.add(added, maps)
            progress.add(len(group))
    if strongest is None:
        raise ValueError("no images")
    return strongest


@torch.no_grad()
def response_maps(network: SPPNet, image: Tensor, layer: str, name: str) -> Tensor:
    """Computes the maps of a layer for one image: uint8 (3, h, w) -> float32 (F, rows, columns) on the CPU.

    Raises ValueError, with the name of the image, for responses that are not finite.
    """
    maps = network.layer_outputs(network_input(network, image[None]), [layer])[layer].float()
    _check_finite(maps, layer, [name])
    return maps[0].cpu()


def _check_finite(maps: Tensor, layer: str, names: Sequence[str]) -> None:
    finite = maps.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        name = printable(names[finite.index(False)])
        raise ValueError(f"{name}: {layer} is not finite for this image; the network is damaged")
