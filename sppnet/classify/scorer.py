"""Scores images by a protocol: crops, whole images, and windows pooled from maps.

Shape letters: N images of equal size, P crops of an image, W windows of an image.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from sppnet.classify.view_inputs import ViewInputs, has_crops, whole_scales
from sppnet.classify.views import ViewProtocol, windows_at
from sppnet.data.batches import to_network_input
from sppnet.data.inputs import Inputs, load_groups
from sppnet.data.sources import Images
from sppnet.network import SPPNet
from sppnet.runtime.devices import sent_to
from sppnet.windows import mirrored_windows, pool_image_windows


class Scorer:
    """Computes the mean softmax scores of images over the views of a protocol, or their mean logits.

    Everything goes through the network with the paddings of training, and a window on maps takes the cells that a crop
    has (`crop_to_cells`). With `protocol.aligned`, whole images and windows on maps go through `network.aligned()`
    instead, in which cell i is centred on pixel stride * i, and a window takes the cells whose centres lie inside it
    (`window_to_cells`): arXiv:1406.4729v4, Appendix A.

    Args:
        network: on its device, in eval mode.
        protocol: the views.
        pixels: input pixels of one forward pass, which limits the memory; a single image may have more.
        autocast: the dtype of convolutions, or None for float32.
        logits: whether to compute logits.

    Raises ValueError for a protocol that does not suit the network: one that needs a pyramid, or too small views.
    """

    def __init__(
        self,
        network: SPPNet,
        protocol: ViewProtocol,
        *,
        pixels: int,
        autocast: torch.dtype | None = None,
        logits: bool = False,
    ) -> None:
        if reason := protocol.unsuited_to(network):
            side = network.input_side
            raise ValueError(f"{reason}: the network has no pyramid and takes {side} x {side} crops only")
        smallest = min([protocol.view_size] * bool(protocol.scales) + protocol.full_scales)
        needed = network.backbone.smallest_input
        if smallest < needed:
            raise ValueError(f"views of {smallest} pixels: the backbone needs at least {needed}")

        self.protocol, self.pixels, self.autocast, self.logits = protocol, pixels, autocast, logits
        self.network = network.to(memory_format=torch.channels_last)
        self.map_network = self.network.aligned() if protocol.aligned else self.network
        self.device = network.fc8.weight.device

    @torch.no_grad()  # in inference mode autocast would convert every weight again in every call
    def __call__(self, batch: Sequence[Inputs]) -> Tensor:
        """Scores images whose inputs have equal shapes: float32 (N, classes) on the CPU."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            views = [*self._crop_views(batch), *self._map_views(batch)]
        return torch.cat(views, dim=1).mean(dim=1).cpu()

    def _crop_views(self, batch: Sequence[Inputs]) -> Iterator[Tensor]:
        """Yields the scores (N, P, classes) of crops, then of mirrored crops."""
        if not has_crops(self.protocol):
            return

        images = sent_to(torch.cat([inputs.tensors[0] for inputs in batch]), self.device)
        per_pass = max(1, 3 * self.pixels // images[0].numel())
        for mirrored in self._sides():
            scores = [self._scores(self.network(self._input(part, mirrored))) for part in images.split(per_pass)]
            yield torch.cat(scores).unflatten(0, (len(batch), -1))

    def _map_views(self, batch: Sequence[Inputs]) -> Iterator[Tensor]:
        """Yields the scores (N, W, classes) per scale and side: of windows on the maps, then of whole images."""
        for i, scale in enumerate(whole_scales(self.protocol), start=int(has_crops(self.protocol))):
            images = sent_to(torch.stack([inputs.tensors[i] for inputs in batch]), self.device)
            for mirrored in self._sides():
                maps = self.map_network.maps(self._input(images, mirrored))
                if self.protocol.maps and scale in self.protocol.scales:
                    yield self._window_scores(maps, images.shape[1:3], mirrored)
                if scale in self.protocol.full_scales:
                    yield self._class_scores(self.map_network.pool(maps))[:, None]

    def _window_scores(self, maps: Tensor, size: tuple[int, ...], mirrored: bool) -> Tensor:
        """Scores the windows (N, W, classes) of images of `size` (height, width) on their maps."""
        windows = np.array(windows_at(self.protocol, *size))
        if mirrored:
            windows = mirrored_windows(windows, size[1])
        crop_side = None if self.protocol.aligned else self.protocol.view_size
        return pool_image_windows(self.map_network, maps, windows, self._class_scores, crop_side=crop_side)

    def _class_scores(self, pooled: Tensor) -> Tensor:
        return self._scores(self.map_network.classify(pooled))

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.float() if self.logits else logits.float().softmax(dim=1)

    def _sides(self) -> tuple[bool, ...]:
        """Returns whether to mirror, (False,), or (False, True) if mirror images are views too."""
        return (False, True) if self.protocol.mirrored else (False,)

    def _input(self, pixels: Tensor, mirrored: bool) -> Tensor:
        """Makes network input of images on the device: uint8 (N, h, w, 3) -> float32 (N, 3, h, w)."""
        images = pixels.permute(0, 3, 1, 2)
        images = images.flip(-1) if mirrored else images
        return to_network_input(images, self.network.input_mean, self.network.input_std)


def score_images(
    scorer: Scorer, images: Images, indices: Sequence[int], *, workers: int
) -> Generator[tuple[list[int], Tensor], None, None]:
    """Scores every index once: yields (indices, scores (n, classes)), in an order that brings equal sizes together.

    Use it inside `explained_loader_failures`, and close it.
    """
    prepare = ViewInputs(scorer.protocol)
    loaded = load_groups(images, prepare, indices, pixels=prepare.pixels, per_pass=scorer.pixels, workers=workers)
    with closing(loaded):
        for group in loaded:
            yield [inputs.image_index for inputs in group], scorer(group)
