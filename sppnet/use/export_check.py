"""Compares the probabilities of an exported file with those of its network, on images of many sizes.

Letters: N images, h and w pixels of height and width, C classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from sppnet.data.batches import to_network_input
from sppnet.network import SPPNet
from sppnet.runtime.names import first_line
from sppnet.runtime.progress import Progress

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 RGB (N, 3, h, w) -> probabilities float32 (N, C)

CHECKS = 50  # batches
_LARGEST_SIDE = 512  # or twice the smallest input, if that is more
_MOST_IMAGES = 4  # of a batch

# How much log probabilities may differ, as a part of their range over the classes. Float32 differs by 1e-6 to 1e-5 of
# it; a bin that lacks one row or column of cells, by 1e-3 and more.
_TOLERANCE = 1e-4
_LEAST_PROBABILITY = 1e-30  # smaller ones count as this: float32 has none below 1e-45, and few digits from 1e-38


class Difference(NamedTuple):
    """The largest differences between a file and its network, over all images and classes."""

    probabilities: float
    log_probabilities: float
    sizes: tuple[tuple[int, int], tuple[int, int]]  # (height, width) of the smallest and the largest images


def check_predictions(network: SPPNet, predict: Predict) -> Difference:
    """Compares predictions with those of a network in float32, on CHECKS batches of drawn images.

    Raises ValueError with the first size of images on which they disagree, or cannot be computed.
    """
    differences, shapes = [], batch_shapes(network)
    with Progress("checking", len(shapes), "sizes") as progress:
        for index, shape in enumerate(shapes):
            pixels = drawn_batch(shape, seed=index)
            differences.append(_difference(expected_probabilities(network, pixels), predict, pixels))
            progress.add(1)
    sizes = sorted((shape[1:] for shape in shapes), key=np.prod)
    probabilities, logs = (max(column) for column in zip(*differences, strict=True))
    return Difference(probabilities, logs, (sizes[0], sizes[-1]))


def batch_shapes(network: SPPNet) -> list[tuple[int, int, int]]:
    """Returns the (N, h, w) of CHECKS batches, from the smallest input on, most of them not square.

    Those of a network without a pyramid differ in the number of images only.
    """
    if (side := network.input_side) is not None:
        return [(images, side, side) for images in range(1, 1 + CHECKS // 5)]
    smallest, random = network.backbone.smallest_input, np.random.default_rng(0)
    shapes = [(1, smallest, smallest), (2, smallest, smallest + 1), (3, smallest + 1, smallest)]
    sides = np.geomspace(smallest, max(_LARGEST_SIDE, 2 * smallest), CHECKS)[len(shapes) :].round().astype(int)
    for height, width in zip(sides, random.permutation(sides), strict=True):
        shapes.append((int(random.integers(1, _MOST_IMAGES + 1)), int(height), int(width)))
    return shapes


def drawn_batch(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Returns images of coarse patches and noise, for (N, h, w): uint8 (N, 3, h, w).

    Each has a contrast of its own, so that not all probabilities are near 0 or 1.
    """
    images, height, width = shape
    random = np.random.default_rng(seed)
    patches = random.normal(size=(images, 3, -(-height // 16), -(-width // 16)))
    coarse = patches.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    contrast = random.choice([8, 16, 32, 64], size=(images, 1, 1, 1))
    values = 128 + contrast * (coarse + random.normal(size=(images, 3, height, width)))
    return values.clip(0, 255).astype(np.uint8)


@torch.no_grad()
def expected_probabilities(network: SPPNet, pixels: np.ndarray) -> np.ndarray:
    """Computes probabilities float32 (N, C) of pixels (N, 3, h, w) by the network itself."""
    images = to_network_input(torch.from_numpy(pixels), network.input_mean, network.input_std)
    return network(images).softmax(dim=1).numpy()


def _difference(expected: np.ndarray, predict: Predict, pixels: np.ndarray) -> tuple[float, float]:
    """Returns the largest difference of probabilities, and of their logarithms, on one batch."""
    images, _, height, width = pixels.shape
    batch = f"on {images} images of {height} x {width} pixels"
    if not np.isfinite(expected).all():
        raise ValueError(f"{batch} the network's probabilities are not finite, so nothing can be compared with them")
    try:
        found = predict(pixels)
    except Exception as error:  # whatever a runtime raises
        raise ValueError(f"the exported file fails {batch} ({first_line(error)}); it is not kept") from error
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(f"the exported file returns {found.dtype} {found.shape} {batch}; it is not kept")

    logs = [np.log(np.maximum(values, _LEAST_PROBABILITY)) for values in (expected, found)]
    most, of_logs = float(abs(found - expected).max()), float(abs(logs[1] - logs[0]).max())
    allowed = _TOLERANCE * float(np.ptp(logs[0], axis=1).max()) + 1e-6
    if not of_logs <= allowed:
        raise ValueError(
            f"the exported file disagrees with PyTorch {batch}: log probabilities differ by {of_logs:.2g}, and may by "
            f"{allowed:.2g}; it is not kept"
        )
    return most, of_logs
