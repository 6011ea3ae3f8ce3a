"""Makes what the views of an image are computed from: crops, and whole images at the scales of the protocol.

Shape letters: P crops of an image.
"""

import torch
from torch import Tensor

from sppnet.classify.views import ViewProtocol, windows_at
from sppnet.data.images import resize_shorter_side


def whole_scales(protocol: ViewProtocol) -> list[int]:
    """Returns the shorter sides at which whole images go through the network, each once."""
    return sorted(set(protocol.full_scales) | set(protocol.scales if protocol.maps else ()))


def has_crops(protocol: ViewProtocol) -> bool:
    """Whether crops go through the network; they are the first tensor of an image then."""
    return bool(protocol.scales) and not protocol.maps


class ViewInputs:
    """Makes the tensors of a decoded image: uint8 (3, h, w) -> a list of uint8 tensors.

    They are the crops (P, view_size, view_size, 3), if the protocol has any, then the whole image (h, w, 3) at each of
    `whole_scales`.
    """

    def __init__(self, protocol: ViewProtocol) -> None:
        self.protocol = protocol

    def __call__(self, image: Tensor) -> list[Tensor]:
        crops = [torch.stack(self._crops(image))] if has_crops(self.protocol) else []
        whole = (resize_shorter_side(image, scale).permute(1, 2, 0) for scale in whole_scales(self.protocol))
        return crops + [pixels.contiguous() for pixels in whole]

    def _crops(self, image: Tensor) -> list[Tensor]:
        """Cuts the windows out of an image: uint8 (3, h, w) -> (view_size, view_size, 3) each."""
        crops = []
        for scale in self.protocol.scales:
            resized = resize_shorter_side(image, scale)
            windows = windows_at(self.protocol, *resized.shape[1:])
            crops += [resized[:, y0:y1, x0:x1].permute(1, 2, 0) for x0, y0, x1, y1 in windows]
        return crops

    @property
    def pixels(self) -> int:
        """The pixels in the tensors of a 4:3 image."""
        positions = len(self.protocol.scales) * len(self.protocol.positions)
        crops = positions * self.protocol.view_size**2 if has_crops(self.protocol) else 0
        return crops + sum(4 * scale**2 // 3 for scale in whole_scales(self.protocol))
