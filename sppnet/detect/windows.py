"""The windows of a set of images with their maps and objects: everything that training and testing read.

Letters: K windows of an image, k objects in it, C classes, d values of a feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sppnet.data.images import decode_image, encoded_image_size
from sppnet.data.objects import AnnotatedImages, Objects
from sppnet.detect.map_files import MapFiles
from sppnet.detect.maps import WindowRules, find_cells, pool_windows_at_scales
from sppnet.detect.matching import best_overlaps
from sppnet.detect.proposal_files import Proposals
from sppnet.detect.rcnn import warped_features
from sppnet.network import SPPNet
from sppnet.runtime.devices import sent_to
from sppnet.runtime.progress import Progress
from sppnet.windows import mirrored_windows

# Computes features of pooled windows: float32 (M, C * B) -> (M, d), row by row.
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class WindowsOfImages:
    """Images with their proposals, cached maps and objects.

    images: the images.
    proposals: their windows.
    maps: their maps, by the convolutions of `network`.
    network: pools; its fully connected layers are not used.
    rules: the scales of the maps, and the cells of a window.
    use_difficult: whether difficult objects are objects to train on.
    autocast: the dtype of convolutions of warped windows, or None for float32.
    warped: whether windows are not pooled from the maps but warped and convolved one by one, as R-CNN does.
    """

    images: AnnotatedImages
    proposals: Proposals
    maps: MapFiles
    network: SPPNet
    rules: WindowRules
    use_difficult: bool = False
    autocast: torch.dtype | None = None
    warped: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the C classes."""
        return self.images.classes

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        return {}

    def size(self, index: int) -> tuple[int, int]:
        """Returns the (height, width) of an image in pixels."""
        if index not in self._sizes:
            self._sizes[index] = encoded_image_size(self.images.read(index), self.images.name(index))
        return self._sizes[index]

    def objects(self, index: int) -> Objects:
        """Returns the objects of an image to train on."""
        objects = self.images.objects(index)
        return objects if self.use_difficult else objects.of(~objects.difficult)

    def windows(self, index: int) -> np.ndarray:
        """Returns the proposals of an image: int64 (K, 4)."""
        return self.proposals.windows(index)

    def features(self, index: int, windows: np.ndarray, head: Head, *, mirrored: bool = False) -> Tensor:
        """Computes features of windows (K, 4) of an image, or of the same windows of its mirror image: (K, d)."""
        if self.warped:
            return self._warped_features(index, windows, head, mirrored)
        found = find_cells(windows, self.size(index), self.network.backbone, self.rules, mirrored=mirrored)
        maps = [sent_to(one, self.network.fc8.weight.device) for one in self.maps.read(index, mirrored=mirrored)]
        with torch.no_grad():
            return pool_windows_at_scales(maps, found, self.network.pyramid.levels, head)

    def _warped_features(self, index: int, windows: np.ndarray, head: Head, mirrored: bool) -> Tensor:
        image = decode_image(self.images.read(index), self.images.name(index))
        if mirrored:
            image, windows = image.flip(-1), mirrored_windows(windows, image.shape[2])
        return warped_features(self.network, image, windows, head, autocast=self.autocast)

    def warped_one_by_one(self) -> "WindowsOfImages":
        """Returns the same windows, whose features are computed as R-CNN does."""
        return replace(self, warped=True)

    def overlaps(self, index: int, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns `best_overlaps` of windows (K, 4) with the objects of an image to train on."""
        return best_overlaps(windows, self.objects(index), len(self.classes))

    def is_negative(self, index: int, windows: np.ndarray, limit: float) -> np.ndarray:
        """Returns bool (K, C): whether a window overlaps every object of the class, difficult or not, by less."""
        highest, _ = best_overlaps(windows, self.images.objects(index), len(self.classes))
        return highest < limit


def _as_pooled(pooled: Tensor) -> Tensor:
    """Returns pooled windows as they are: the head of pool5."""
    return pooled


class DrawnWindows:
    """Pools windows of any images, a few of each, and reads only their cells from the files of maps.

    The windows of an image are its proposals, followed by its objects to train on. After `keep`, windows come from
    memory, which is many times as fast.
    """

    def __init__(self, data: WindowsOfImages) -> None:
        self.data = data
        self._kept: Tensor | None = None  # float16 (N, C * B)
        self._rows: list[np.ndarray] = []  # of each image, int64 (2, K + k): rows in _kept, mirrored ones second
        with Progress("cells of windows", len(data)) as progress:
            self._cells = [self._find_cells(index, progress) for index in range(len(data))]

    def _find_cells(self, index: int, progress: Progress) -> np.ndarray:
        """Returns int16 (2, K + k, 5): scale and cells of each window, in the image and in its mirror image."""
        windows, data = self.windows(index), self.data
        both = []
        for mirrored in (False, True):
            found = find_cells(windows, data.size(index), data.network.backbone, data.rules, mirrored=mirrored)
            both.append(np.column_stack([found.scales, found.cells])[found.places])
        progress.add(1)
        return np.stack(both).astype(np.int16)

    def windows(self, index: int) -> np.ndarray:
        """Returns the windows of an image: float64 (K + k, 4)."""
        return np.concatenate([self.data.windows(index), self.data.objects(index).boxes])

    def keep(self, used: Sequence[np.ndarray], memory: int) -> None:
        """Pools windows and keeps them in memory, both as they are and mirrored, if they fit into so many bytes.

        Args:
            used: for each image the indices of the windows that will be drawn, each once.
            memory: bytes.
        """
        length, number = self.data.network.pooled_length, 2 * sum(map(len, used))
        if 2 * length * number > memory:
            return
        kept, next_row = torch.empty(number, length, dtype=torch.float16), 0
        with Progress("windows for fine-tuning", len(used)) as progress:
            for index, indices in enumerate(used):
                windows, rows = self.windows(index), np.full((2, len(self.windows(index))), -1)
                for mirrored in (False, True) if len(indices) else ():
                    end = next_row + len(indices)
                    kept[next_row:end] = self.data.features(
                        index, windows[indices], _as_pooled, mirrored=mirrored
                    ).cpu()
                    rows[int(mirrored), indices] = np.arange(next_row, end)
                    next_row = end
                self._rows.append(rows)
                progress.add(1)
        self._kept = kept

    def __call__(self, images: np.ndarray, windows: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """Pools windows: indices of images and windows, and whether to mirror, (n,) each -> float32 (n, C * B)."""
        if self._kept is not None:
            drawn = zip(images.tolist(), mirrored.tolist(), windows.tolist(), strict=True)
            return self._kept[[self._rows[image][int(flip), window] for image, flip, window in drawn]].float()
        pooled = []
        for image, window, flip in zip(images.tolist(), windows.tolist(), mirrored.tolist(), strict=True):
            scale, x0, y0, x1, y1 = self._cells[image][int(flip), window].tolist()
            cells = self.data.maps.read_cells(image, scale, (x0, y0, x1, y1), mirrored=flip)
            pooled.append(self.data.network.pyramid(cells.float()))
        return torch.cat(pooled)
