"""Checks what an explanation says: greys what speaks for a class, and compares with greying a random place."""

import contextlib
import math
from typing import NamedTuple

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
from sppnet.use.evidence import class_evidence, predicted_class
from sppnet.use.network_views import MapCells, NetworkView, network_input


class Greying(NamedTuple):
    """By how much the probability of the predicted class fell in each image, where a square of it was greyed."""

    strongest: np.ndarray  # float64 (n,), the square lies around the cell with the most evidence
    random: np.ndarray  # float64 (n,), around a random cell


def grey_and_compare(
    network: SPPNet,
    images: Images,
    view: NetworkView,
    *,
    count: int,
    side: int = 48,
    seed: int = 0,
    hardware: Hardware,
) -> Greying:
    """Greys squares in random images, and measures how the probability of the predicted class changes.

    Each image is greyed twice: around the cell of the last maps that speaks most for the predicted class, and around a
    cell drawn at random. Both depend only on the seed and the index of the image.

    Args:
        network: on its device, in eval mode.
        images: the images.
        view: what the network sees of an image.
        count: how many images; all if there are fewer.
        side: of the square in pixels.
        seed: of the images and the random cells.
        hardware: one device.

    Raises UnreadableImage for an image that cannot be read, and ValueError as `class_evidence` does.
    """
    cells = MapCells.of(network, network.backbone.layers[-1])
    chosen = np.random.default_rng(seed).permutation(len(images))[:count].tolist()
    drops: dict[int, tuple[float, float]] = {}
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress("greying", len(chosen)))
        stack.enter_context(explained_loader_failures("hardware.workers"))
        groups = load_groups(images, view, chosen, pixels=view.pixels, per_pass=1, workers=hardware.loaders)
        for group in stack.enter_context(contextlib.closing(groups)):
            for inputs in group:
                random = np.random.default_rng([seed, inputs.image_index])
                image = inputs.tensors[0].permute(2, 0, 1)
                name = printable(images.name(inputs.image_index))
                drops[inputs.image_index] = _drops(network, image, cells, side, random, name)
                progress.add(1)

    strongest, at_random = np.array([drops[i] for i in chosen]).T
    return Greying(strongest, at_random)


def _drops(
    network: SPPNet, image: Tensor, cells: MapCells, side: int, random: np.random.Generator, name: str
) -> tuple[float, float]:
    """Returns by how much the probability falls with the strongest and with a random cell greyed."""
    target = predicted_class(network, image)
    try:
        evidence = class_evidence(network, image, target)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error

    by_cell = evidence.by_cell
    places = [int(by_cell.argmax()), int(random.integers(by_cell.size))]
    found = np.array([divmod(place, by_cell.shape[1])[::-1] for place in places])
    grey = [greyed(image, center, side, network.input_mean) for center in cells.centers(found)]
    with torch.no_grad():
        scores = network(network_input(network, torch.stack(grey))).softmax(dim=1)[:, target]
    before = float(evidence.probabilities[target])
    return before - float(scores[0]), before - float(scores[1])


def greyed(image: Tensor, center: np.ndarray, side: int, grey: tuple[float, ...]) -> Tensor:
    """Returns an image with a square of one colour: uint8 (3, h, w) -> uint8 (3, h, w).

    Args:
        image: the image.
        center: (x, y) of the square in pixels; what lies outside of the image is cut off.
        side: of the square in pixels.
        grey: the colour, in 0..255.
    """
    image = image.clone()
    x0, y0 = (math.floor(float(place) - side / 2 + 1) for place in center)
    columns, rows = (slice(max(0, start), max(0, start + side)) for start in (x0, y0))
    image[:, rows, columns] = torch.tensor(grey).round().to(torch.uint8)[:, None, None]
    return image
