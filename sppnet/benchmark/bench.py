"""What comparisons share: the device, sizes of batches and networks, and drawn image files."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.backbones import build_backbone
from sppnet.benchmark.images import draw_images
from sppnet.data.prepare import prepare
from sppnet.data.shards import Settings
from sppnet.data.sources import ImageData, open_data
from sppnet.network import SPPNet
from sppnet.runtime.machine import bf16_is_fast, core_count, keep_freed_memory

CLASSES = 1000
LEVELS = (6, 3, 2, 1)  # of the pyramid
WIDTHS = (300, 500, 1600)  # of the drawn photos, in pixels
_DISTINCT = 64  # photos of each size but 500 wide: one 1,600 wide takes a second to draw


class Bench:
    """What the comparisons on one device share.

    A context manager: the image files for loading exist inside the block.

    Args:
        device: "cpu" or "cuda".
        batch_size: images of a training batch; None: 32 on a CPU, 256 on a GPU.
        files: how many image files to load; None: 16 batches. Of the largest photos it is a quarter.
        hidden: neurons of fc6 and of fc7.
    """

    def __init__(
        self, device: str, batch_size: int | None = None, files: int | None = None, hidden: int = 4096
    ) -> None:
        self.device = torch.device(device)
        self.batch_size = batch_size or (256 if device == "cuda" else 32)
        self.file_count = files or 16 * self.batch_size
        self.hidden = hidden
        self.autocast = bf16_is_fast(device)
        self.workers = core_count()
        self.parts: dict[str, dict[str, float]] = {}  # of loading, once they are measured
        self._drawn: dict[tuple[int, int], Path] = {}

    def __enter__(self) -> "Bench":
        self._folder = tempfile.TemporaryDirectory()
        if self.device.type == "cpu":
            keep_freed_memory()  # as training and testing do
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
        keep_freed_memory(False)

    @property
    def folder(self) -> Path:
        """A folder for files, which is removed at the end."""
        return Path(self._folder.name)

    def files(self, width: int = 500, count: int | None = None) -> Path:
        """Returns a folder of class folders with `count` JPEG files of 4:3, drawn at its first use."""
        if count is None:
            count = max(2 * self.batch_size, self.file_count // 4) if width > 1000 else self.file_count
        if (width, count) not in self._drawn:
            distinct = count if (width, count) == (500, self.file_count) else _DISTINCT
            root = self.folder / f"{width}_wide_{count}"
            self._drawn[width, count] = draw_images(root, count, width * 3 // 4, width, distinct)
        return self._drawn[width, count]

    @cached_property
    def stored(self) -> ImageData:
        """The images of 500 x 375 in a prepared store, as JPEG."""
        return self._prepared("store", Settings(256, 95))

    @cached_property
    def raw(self) -> ImageData:
        """The same in a prepared store of pixels."""
        return self._prepared("raw", Settings(256, None))

    def _prepared(self, name: str, settings: Settings) -> ImageData:
        store = self.folder / name
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(open_data("folder", root=str(self.files())), store, settings, workers=self.workers)
        return open_data("prepared", root=str(store))

    def random(self, *shape: int) -> Tensor:
        """Returns random values in 0..1 that require gradients, channels last."""
        maps = torch.rand(*shape, device=self.device).to(memory_format=torch.channels_last)
        return maps.requires_grad_()

    def network(self, levels: tuple[int, ...] | None = LEVELS, compiled: bool | None = None) -> SPPNet:
        """Builds ZF-5. `compiled` None: as training decides, on a GPU only."""
        network = SPPNet(build_backbone("zf5", normalization="across_channels"), levels, CLASSES, hidden=self.hidden)
        network.to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cuda" if compiled is None else compiled:
            network.compile(dynamic=False)
        return network

    def train(self, network: nn.Module, autocast: bool | None = None) -> Callable[[Tensor], None]:
        """Returns a function that does one training step on a batch. `autocast` None: as training decides."""
        autocast = self.autocast if autocast is None else autocast
        network = network.to(self.device).train()
        return training_step(network, torch.arange(self.batch_size, device=self.device), autocast)


def training_step(
    network: nn.Module, labels: Tensor, autocast: bool, learning_rate: float = 0.001
) -> Callable[[Tensor], None]:
    """Returns a function that does one training step on network input, float (B, 3, H, W), on the device of the labels.

    `labels` are int64 (B,), the same in every step.
    """
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, 0.9, weight_decay=5e-4, fused=True)

    def step(images: Tensor) -> None:
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
