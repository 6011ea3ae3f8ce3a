"""What speaks for a class in an image: by level of the pyramid, and by cell of the last maps.

Shape letters: C channels of the last maps, (h, w) their cells, B bins of the pyramid.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from sppnet.network import SPPNet
from sppnet.use.network_views import MapCells, network_input

_MOST_OVERLAP = 0.5  # IoU of two of the strongest windows


class Evidence(NamedTuple):
    """What speaks for a class in one image."""

    score: float  # log odds of the class, or how much larger its logit is than that of another class
    by_level: list[float]  # of the pyramid, in its order
    by_cell: np.ndarray  # float32 (h, w)
    probabilities: np.ndarray  # float32 (classes,)

    @property
    def total(self) -> float:
        """The sum over all levels, which is also that over all cells."""
        return math.fsum(self.by_level)


def predicted_class(network: SPPNet, image: Tensor) -> int:
    """Returns the class with the highest probability for an image: uint8 (3, h, w)."""
    with torch.no_grad():
        return int(network(network_input(network, image[None])).argmax())


def class_evidence(network: SPPNet, image: Tensor, target: int, against: int | None = None) -> Evidence:
    """Computes what speaks for a class: the value of every pooled bin times its gradient, summed.

    The gradient is that of the class's log odds, log(p / (1 - p)), with respect to the bin's value; with `against`, of
    its logit minus that of the other class. The value of a bin is that of one cell of the maps, to which its gradient
    goes; so the sums over levels and over cells are equal. The rest of the score comes from the biases of the fully
    connected layers and from how the log odds bend.

    Args:
        network: in eval mode.
        image: uint8 (3, h, w), what the network sees.
        target: the class.
        against: another class; None: all others.

    Raises ValueError for a network of one class, for equal classes, and if the score is not finite.
    """
    if network.num_classes < 2:
        raise ValueError("the network has one class, whose probability is always 1")
    if target == against:
        raise ValueError("the class that is explained must be another than the one it is compared with")
    with torch.no_grad():
        maps = network.maps(network_input(network, image[None]))

    with torch.enable_grad():
        maps.requires_grad_()
        pooled = network.pool(maps)
        logits = network.classify(pooled)[0]
        score = _score(logits.double(), target, against)
        of_maps, of_pooled = torch.autograd.grad(score, (maps, pooled))

    if not score.isfinite():
        raise ValueError("the scores of the network are not finite for this image; the network is damaged")
    by_bin = (pooled * of_pooled).detach()[0].double()
    sizes = [network.backbone.channels * n * n for n in network.pyramid.levels]
    by_level = [float(part.sum()) for part in by_bin.split(sizes)]
    by_cell = (maps * of_maps).detach()[0].sum(dim=0)
    probabilities = logits.detach().float().softmax(dim=0)
    return Evidence(float(score.detach()), by_level, by_cell.cpu().numpy(), probabilities.cpu().numpy())


def _score(logits: Tensor, target: int, against: int | None) -> Tensor:
    """Returns the log odds of a class, or the difference of two logits, from logits (classes,)."""
    if against is not None:
        return logits[target] - logits[against]
    others = torch.cat([logits[:target], logits[target + 1 :]])
    return logits[target] - others.logsumexp(dim=0)


def strongest_cells(by_cell: np.ndarray, cells: MapCells, most: int = 3) -> np.ndarray:
    """Returns the cells with the most evidence: int64 (k, 2) of (x, y), k at most `most`, the strongest first.

    Evidence is above 0 in each. Where the windows of two of them would overlap by more than half (IoU), the weaker one
    is left out.
    """
    rows, columns = np.nonzero(by_cell > 0)
    found = np.stack([columns, rows], axis=1)
    windows = torch.from_numpy(cells.windows(found).astype(np.float32))
    kept = nms(windows, torch.from_numpy(by_cell[rows, columns]), _MOST_OVERLAP)
    return found[kept[:most].numpy()]
