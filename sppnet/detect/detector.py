"""A detector: SVMs on pooled windows, suppression of duplicates, and box regression; detecting in one image; its file.

Letters: K windows of an image, C classes, d values of a feature, D detections.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from sppnet.detect.maps import WindowRules, find_cells, image_maps, pool_windows_at_scales
from sppnet.detect.proposals import Proposer, chosen_windows, saved_proposer
from sppnet.detect.rcnn import warped_features
from sppnet.detect.regression import BoxRegressor
from sppnet.detect.suppression import DetectedBoxes, SuppressionSettings, detect, suppressed
from sppnet.network import SPPNet, load_network
from sppnet.runtime.devices import sent_to
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import check_names, first_line, printable
from sppnet.runtime.rules import COUNT, SEED, TEXT, check_section

# Layers whose features SVMs can be trained on, in the order of the forward pass.
LAYERS = ("pool5", "fc6", "fc7")


def layer_features(network: SPPNet, pooled: Tensor, layers: Sequence[str]) -> Tensor:
    """Returns the features of several of LAYERS side by side: (K, sum of their d), from pooled windows (K, C * B).

    Layers after the last one asked for are not computed.
    """
    outputs = {"pool5": pooled}
    if not {"fc6", "fc7"}.isdisjoint(layers):
        outputs["fc6"] = torch.relu(network.fc6(pooled))
    if "fc7" in layers:
        outputs["fc7"] = torch.relu(network.fc7(outputs["fc6"]))
    return torch.cat([outputs[layer].float() for layer in layers], dim=1)


def head_of(network: SPPNet, layers: Sequence[str], autocast: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Returns what computes the features of layers of a network from pooled windows, side by side."""

    def head(pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, autocast, enabled=autocast is not None):
            return layer_features(network, pooled, layers)

    return head


def layers_to_pool(of_svms: Iterable[str]) -> list[str]:
    """Returns the layers whose features detectors need: pool5, which box regression takes, and those of their SVMs."""
    return ["pool5", *sorted(set(of_svms) - {"pool5"})]


def layer_length(network: SPPNet, layer: str) -> int:
    """Returns the number of values of a feature of one of LAYERS.

    Raises ValueError for another layer, and for one that the network does not have.
    """
    check_names("layer", [layer], LAYERS)
    network.check_layers("layer", [layer])
    return network.pooled_length if layer == "pool5" or network.hidden is None else network.hidden


@dataclass(frozen=True, eq=False)
class LinearSvms:
    """The SVMs of all classes on the features of one layer.

    weights: float32 (d, C).
    biases: float32 (C,).
    factor: what features are multiplied by, so that their average norm in training is 20.
    """

    layer: str
    weights: Tensor
    biases: Tensor
    factor: float

    def __call__(self, features: Tensor) -> Tensor:
        """Returns the decision values of features (K, d): float32 (K, C)."""
        weights, biases = sent_to(self.weights, features.device), sent_to(self.biases, features.device)
        return self.factor * (features.float() @ weights) + biases


@dataclass(frozen=True, eq=False)
class BoxRegressors:
    """Box regressors of all classes, None for a class without any, on pooled windows times `factor`."""

    of_class: tuple[BoxRegressor | None, ...]
    factor: float

    def __call__(self, pooled: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Moves detected windows (D, 4) by the regressors of their labels (D,), from their pooled vectors (D, d)."""
        moved, known_labels = boxes.clone(), labels.cpu()
        for label in known_labels.unique().tolist():
            if (regressor := self.of_class[label]) is not None:
                chosen = sent_to((known_labels == label).nonzero().flatten(), boxes.device)
                moved[chosen] = regressor(self.factor * pooled[chosen].float(), boxes[chosen])
        return moved


def with_moved_boxes(
    detections: DetectedBoxes,
    pooled: Tensor,
    regressors: BoxRegressors,
    size: tuple[int, int],
    settings: SuppressionSettings,
) -> DetectedBoxes:
    """Moves the boxes of detections towards their objects, and suppresses those that are duplicates then.

    Args:
        detections: in one image.
        pooled: (D, d), the pooled vector of each.
        regressors: for the boxes.
        size: (height, width) of the image in pixels, to which boxes are clipped.
        settings: the limits.
    """
    boxes = regressors(pooled, detections.boxes, detections.labels)
    boxes = clip_boxes_to_image(boxes, size)
    # A box that a regressor has moved out of the image is nothing to see; its window is.
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    boxes = torch.where(empty[:, None], detections.boxes, boxes)
    kept = suppressed(boxes, detections.scores, detections.labels, settings)
    return DetectedBoxes(boxes[kept], detections.labels[kept], detections.scores[kept])


def detect_in_features(
    features: Mapping[str, Tensor],
    windows: Tensor,
    size: tuple[int, int],
    svms: LinearSvms,
    regressors: BoxRegressors | None,
    settings: SuppressionSettings,
) -> DetectedBoxes:
    """Detects objects among the windows of an image, from their features.

    Args:
        features: of `layers_to_pool`, (K, d) each.
        windows: (K, 4) in pixels, on the same device.
        size: (height, width) of the image in pixels.
        svms: score the windows.
        regressors: move the boxes; None leaves them where their windows are.
        settings: what becomes of the scores.
    """
    # Contiguous, so that no bit of a score depends on the layers that lie beside this one.
    detections, window = detect(svms(features[svms.layer].contiguous()), windows, settings)
    if regressors is None:
        return detections
    return with_moved_boxes(detections, features["pool5"][window], regressors, size, settings)


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained detector. `save_detector` and `load_detector` keep it as plain values."""

    network: SPPNet
    classes: tuple[str, ...]
    svms: LinearSvms
    regressors: BoxRegressors | None
    rules: WindowRules  # the scales of the maps, and the cells of a window
    aligned: bool  # whether images go through `network.aligned()`
    warped: bool  # whether windows are warped and convolved one by one, as R-CNN does, instead of pooled from maps
    test: SuppressionSettings
    # What `Proposer.settings` returned, with "most", the windows of an image, and "seed", which chooses them.
    proposals: dict[str, Any]

    def proposer(self) -> Proposer:
        """Builds what proposes windows. Raises ValueError as `sppnet.detect.proposals.saved_proposer` does."""
        return saved_proposer({key: value for key, value in self.proposals.items() if key not in ("most", "seed")})

    @cached_property
    def maps_network(self) -> SPPNet:
        """The network that makes the maps: `network`, with its weights in channels_last, and `aligned` if it is."""
        network = self.network.to(memory_format=torch.channels_last)  # as for maps on disk, so that maps are the same
        return network.aligned().eval() if self.aligned else network


# Detecting in one image.


@torch.no_grad()
def detect_image(
    detector: Detector,
    image: Tensor,
    *,
    windows: np.ndarray | None = None,
    name: str = "image",
    autocast: torch.dtype | None = None,
) -> DetectedBoxes:
    """Detects objects in an image: windows, maps, features, scores, suppression, box regression.

    Boxes are those that a test of the detector finds in an image of this name, bit for bit in the same precision.

    Args:
        detector: its network may be on a GPU.
        image: uint8 RGB (3, h, w), upright, as `sppnet.data.images.decode_image` returns it.
        windows: (K, 4), x0, y0, x1, y1 in pixels; None: those of `proposed_windows`.
        name: of the image, which chooses the windows if there are too many, and which errors begin with.
        autocast: the dtype of the network, or None for float32.

    Returns the boxes, on the device of the network.

    Raises ValueError for a tensor that is no such image, and as `proposed_windows` and `sppnet.detect.maps.find_cells`.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(printable(f"{name}: {image.dtype} of shape {tuple(image.shape)}, must be uint8 (3, h, w)"))
    windows = proposed_windows(detector, image, name) if windows is None else np.asarray(windows)
    network, size = detector.maps_network, (image.shape[1], image.shape[2])
    layers = layers_to_pool([detector.svms.layer])
    head = head_of(network, layers, autocast)
    if detector.warped:
        pooled = warped_features(network, image, windows, head, autocast=autocast)
    else:
        found = find_cells(windows, size, network.backbone, detector.rules)
        maps = image_maps(network, image, detector.rules.scales, autocast=autocast)
        pooled = pool_windows_at_scales(maps, found, network.pyramid.levels, head)

    parts = pooled.split([layer_length(network, layer) for layer in layers], dim=1)
    boxes = sent_to(torch.from_numpy(windows), pooled.device)
    features = dict(zip(layers, parts, strict=True))
    return detect_in_features(features, boxes, size, detector.svms, detector.regressors, detector.test)


def proposed_windows(detector: Detector, image: Tensor, name: str = "image") -> np.ndarray:
    """Proposes windows as the detector was trained and tested with: uint8 RGB (3, h, w) -> int64 (K, 4).

    Raises ValueError as `Detector.proposer` does, and with `name` for an image that is too large.
    """
    proposer, settings = detector.proposer(), detector.proposals
    windows = proposer(image, name)
    return chosen_windows(windows, most=settings["most"], ranked=proposer.ranked, seed=settings["seed"], name=name)


# Its file.


def save_detector(detector: Detector, path: Path) -> None:
    """Writes a detector for `load_detector`, atomically: plain values and tensors only."""
    regressors = detector.regressors

    content = {
        "network": detector.network.description(),
        "state_dict": {f"network.{name}": value for name, value in detector.network.state_dict().items()},
        "detector": {
            "classes": list(detector.classes),
            "layer": detector.svms.layer,
            "weights": detector.svms.weights,
            "biases": detector.svms.biases,
            "factor": detector.svms.factor,
            "regressors": regressors and [one and [one.weights, one.bias] for one in regressors.of_class],
            "regression_factor": regressors and regressors.factor,
            "rules": vars(detector.rules) | {"scales": list(detector.rules.scales)},
            "aligned": detector.aligned,
            "warped": detector.warped,
            "test": vars(detector.test),
            "proposals": detector.proposals,
        },
    }

    with atomic_file(path) as file:
        torch.save(content, file)


def is_detector(path: Path) -> bool:
    """Whether a file is the checkpoint of a detector, rather than of a classifier or something else."""
    try:
        return "detector" in torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch.load fails on foreign files in a dozen ways
        return False


def load_detector(path: Path) -> Detector:
    """Loads a detector that `save_detector` wrote: on the CPU, in eval mode.

    Reads plain values and tensors only (`weights_only=True`), as `sppnet.network.load_network` does.

    Raises FileNotFoundError if there is no such file, ValueError if it holds no detector.
    """
    network = load_network(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["detector"]
        return _detector(network, dict(values))
    except Exception as error:  # a foreign file can lack anything, and hold anything
        raise ValueError(f"{path}: not a detector of sppnet ({first_line(error)})") from error


def _detector(network: SPPNet, values: dict[str, Any]) -> Detector:
    """Builds a detector from what `save_detector` writes. Raises anything for anything else."""
    classes, length = tuple(map(str, values["classes"])), layer_length(network, values["layer"])
    svms = LinearSvms(
        str(values["layer"]),
        _floats(values["weights"], length, len(classes)),
        _floats(values["biases"], len(classes)),
        float(values["factor"]),
    )

    regressors, pooled = None, network.pooled_length
    if values["regressors"] is not None:
        of_class = [
            one and BoxRegressor(_floats(one[0], pooled, 4), _floats(one[1], 4)) for one in values["regressors"]
        ]
        if len(of_class) != len(classes):
            raise ValueError(f"{len(of_class)} box regressors for {len(classes)} classes")
        regressors = BoxRegressors(tuple(of_class), float(values["regression_factor"]))

    check_section(values["proposals"], {"proposer": TEXT, "most": COUNT, "seed": SEED}, {}, "proposals.")
    return Detector(
        network=network,
        classes=classes,
        svms=svms,
        regressors=regressors,
        rules=WindowRules(**values["rules"] | {"scales": tuple(map(int, values["rules"]["scales"]))}),
        aligned=bool(values["aligned"]),
        warped=bool(values["warped"]),
        test=SuppressionSettings(**values["test"]),
        proposals=dict(values["proposals"]),
    )


def _floats(value: Tensor, *shape: int) -> Tensor:
    """Returns a tensor if it is float32 of this shape and finite. Raises ValueError if it is not."""
    if value.dtype != torch.float32 or tuple(value.shape) != shape or not value.isfinite().all():
        raise ValueError(f"found {value.dtype} {list(value.shape)}, expected finite float32 {list(shape)}")
    return value.clone()
