"""Explains what a network says about one image: what speaks for a class, and which filters respond where."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sppnet.network import SPPNet
from sppnet.use.evidence import Evidence, class_evidence, predicted_class
from sppnet.use.responses import response_maps


class Explained(NamedTuple):
    """What speaks for a class in one photo, and how its filters respond."""

    name: str
    image: Tensor  # uint8 (3, h, w), what the network sees
    target: int
    against: int | None
    evidence: Evidence
    filters: list[int]  # those that are shown
    maps: Tensor  # float32 (F, rows, columns), of the layer


def explain_image(
    network: SPPNet,
    image: Tensor,
    name: str,
    *,
    layer: str,
    target: int | None = None,
    against: int | None = None,
    filters: Sequence[int] | None = None,
    most_filters: int = 10,
) -> Explained:
    """Computes what speaks for a class in one image, and the responses of a layer.

    Args:
        network: on its device, in eval mode.
        image: uint8 (3, h, w), what the network sees.
        name: of the image, for messages.
        layer: one that has maps.
        target: the class; None: the predicted one.
        against: another class; None: all others.
        filters: those to show; None: those with the strongest responses, at most `most_filters`, none without any.

    Raises ValueError as `class_evidence` does.
    """
    maps = response_maps(network, image, layer, name)
    target = predicted_class(network, image) if target is None else target
    evidence = class_evidence(network, image, target, against)
    strongest = maps.flatten(1).amax(dim=1)
    if filters is None:
        order = strongest.argsort(descending=True, stable=True)[:most_filters].tolist()
        filters = [number for number in order if strongest[number] > 0]
    return Explained(name, image, target, against, evidence, list(filters), maps)
