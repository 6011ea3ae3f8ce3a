"""The same network, pooling and loading in plain PyTorch: slower, with the same numbers, as the tests check."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


class PlainPyramid(nn.Module):
    """Pools with one adaptive max pooling per level."""

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1)) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.AdaptiveMaxPool2d(n) for n in levels)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([level(maps).flatten(1) for level in self.levels], dim=1)


def plain_window_pooling(maps: Tensor, windows: Tensor, levels: Sequence[int] = (6, 3, 2, 1)) -> Tensor:
    """Pools windows with one `roi_pool` per level: (N, C, H, W) and half-open cells (K, 5) -> (K, C * B)."""
    from torchvision.ops import roi_pool  # takes as long to import as torch itself

    inclusive = (windows - windows.new_tensor([0, 0, 0, 1, 1])).to(maps.dtype)
    return torch.cat([roi_pool(maps, inclusive, n).flatten(1) for n in levels], dim=1)


def plain_zf5(
    num_classes: int, levels: Sequence[int] = (6, 3, 2, 1), *, hidden: int = 4096, dropout: float = 0.5
) -> nn.Sequential:
    """Builds ZF-5 with normalization across channels; its parameters have the order of those of `SPPNet("zf5")`."""
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 7, stride=2, padding=2), nn.ReLU(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)),
        nn.MaxPool2d(3, 2),
        *(nn.Conv2d(96, 256, 5, stride=2, padding=1), nn.ReLU(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)),
        nn.MaxPool2d(3, 2),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        PlainPyramid(levels),
        *(nn.Linear(256 * sum(n * n for n in levels), hidden), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(hidden, num_classes),
    )


def plain_loader(root: Path, *, batch_size: int, workers: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Builds a loader from torchvision's ImageFolder with Pillow, and its transforms one image at a time.

    Args:
        root: a folder of class folders.
        mean, std: for values of 0..255.
    """
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.Resize(256),
        transforms.RandomCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([m / 255 for m in mean], [s / 255 for s in std]),
    ]
    images = ImageFolder(str(root), transforms.Compose(steps))
    return DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
