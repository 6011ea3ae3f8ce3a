"""Pooling windows of one map by their bins, beside two other ways."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.benchmark.references import plain_window_pooling
from sppnet.benchmark.timing import Ratio, Work, compare
from sppnet.pyramid import pool_windows
from sppnet.windows import pool_by_bins

_POOLED = (8, 16, 32, 100, 500, 2000)  # windows that are pooled


@dataclass(frozen=True, eq=False)
class Poolings:
    """Three ways to pool different windows of one map.

    maps: (1, C, H, W) as detection keeps it.
    cells: int64 (K, 4), different ones, sorted.
    """

    maps: Tensor
    cells: np.ndarray
    levels: Sequence[int]

    def works(self, count: int) -> tuple[Work, Work, Work]:
        """Returns pooling `count` windows at random by bins, by `pool_windows`, and by `roi_pool` in float32."""
        order = np.random.default_rng(0).permutation(len(self.cells))
        cells = self.cells[np.sort(order[:count])]
        rows = torch.from_numpy(np.insert(cells, 0, 0, axis=1))
        return (
            partial(pool_by_bins, self.maps, cells, self.levels),
            partial(pool_windows, self.maps, rows, self.levels),
            partial(plain_window_pooling, self.maps.float().contiguous(), rows, self.levels),
        )


class TimedPooling(NamedTuple):
    """How much faster `pool_by_bins` is than two others, for some windows of one map."""

    windows: int
    pool_windows: Ratio
    roi_pool: Ratio  # torchvision's, once per level, on the same map in float32


def time_pooling(poolings: Poolings, rounds: int, seconds: float) -> Iterator[TimedPooling]:
    """Times the pooling of as many of _POOLED windows as there are."""
    for count in _POOLED:
        if count <= len(poolings.cells):
            by_bins, *others = poolings.works(count)
            yield TimedPooling(count, *(compare(by_bins, other, rounds, seconds) for other in others))
