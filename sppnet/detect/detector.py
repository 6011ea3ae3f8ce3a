"""A detector: SVMs on pooled windows, suppression of duplicates, and box regression.

Letters: K windows of an image, C classes, d values of a feature, D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from sppnet.detect.maps import WindowRules
from sppnet.detect.regression import BoxRegressor
from sppnet.network import SPPNet, load_network
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import check_names, first_line

# Layers whose features SVMs can be trained on, in the order of the forward pass.
LAYERS = ("pool5", "fc6", "fc7")


@dataclass(frozen=True, kw_only=True)
class SuppressionSettings:
    """What becomes of the scores of windows: the `test` section. Raises ValueError for values out of range.

    The suppression is the paper's (arXiv:1406.4729v4, §4.1), the score and the number those of its release.
    """

    least_score: float = -1.5  # windows below are no detections
    suppression_overlap: float = 0.3  # of two detections of a class that overlap more, only the higher stays
    most: int = 100  # detections per image and class

    def __post_init__(self) -> None:
        if not 0 <= self.suppression_overlap <= 1:
            raise ValueError(f"test.suppression_overlap={self.suppression_overlap}: must be from 0 to 1")
        if self.most < 1:
            raise ValueError(f"test.most={self.most}: must be at least 1")


class DetectedBoxes(NamedTuple):
    """The detected boxes of one image, highest score first.

    boxes: float32 (D, 4), x0, y0, x1, y1 in pixels, half-open.
    labels: int64 (D,).
    scores: float32 (D,), decision values of the SVMs.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


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


def layer_length(network: SPPNet, layer: str) -> int:
    """Returns the number of values of a feature of one of LAYERS. Raises ValueError for another layer."""
    check_names("layer", [layer], LAYERS)
    return network.fc6.in_features if layer == "pool5" else network.hidden


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
        return self.factor * (features.float() @ self.weights) + self.biases


@dataclass(frozen=True, eq=False)
class BoxRegressors:
    """Box regressors of all classes, None for a class without any, on pooled windows times `factor`."""

    of_class: tuple[BoxRegressor | None, ...]
    factor: float

    def __call__(self, pooled: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Moves detected windows (D, 4) by the regressors of their labels (D,), from their pooled vectors (D, d)."""
        moved = boxes.clone()
        for label in labels.unique().tolist():
            if (regressor := self.of_class[label]) is not None:
                chosen = labels == label
                moved[chosen] = regressor(self.factor * pooled[chosen].float(), boxes[chosen])
        return moved


def detect(scores: Tensor, windows: Tensor, settings: SuppressionSettings) -> tuple[DetectedBoxes, Tensor]:
    """Makes detections of scored windows, class by class.

    Args:
        scores: float32 (K, C).
        windows: (K, 4) in pixels.
        settings: the limits.

    Returns the detections, and the window of each, int64 (D,).
    """
    window, label = (scores >= settings.least_score).nonzero(as_tuple=True)
    values, boxes = scores[window, label], windows[window].float()
    kept = _suppressed(boxes, values, label, settings)
    return DetectedBoxes(boxes[kept], label[kept], values[kept]), window[kept]


def _suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, settings: SuppressionSettings) -> Tensor:
    """Returns the indices of detections that stay: int64, highest score first, at most so many of a class."""
    kept = batched_nms(boxes, scores, labels, settings.suppression_overlap)
    ranks = torch.zeros_like(kept)
    for label in labels[kept].unique():
        chosen = labels[kept] == label
        ranks[chosen] = torch.arange(int(chosen.sum()), device=kept.device)
    return kept[ranks < settings.most]


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
    boxes[empty] = detections.boxes[empty]
    kept = _suppressed(boxes, detections.scores, detections.labels, settings)
    return DetectedBoxes(boxes[kept], detections.labels[kept], detections.scores[kept])


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained detector. `save_detector` and `load_detector` keep it as plain values."""

    network: SPPNet
    classes: tuple[str, ...]
    svms: LinearSvms
    regressors: BoxRegressors | None
    rules: WindowRules  # the scales of the maps, and the cells of a window
    aligned: bool  # whether images go through `network.aligned()`
    test: SuppressionSettings
    proposals: dict[str, Any]  # the settings of the windows


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
            "test": vars(detector.test),
            "proposals": detector.proposals,
        },
    }

    with atomic_file(path) as file:
        torch.save(content, file)


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

    regressors, pooled = None, network.fc6.in_features
    if values["regressors"] is not None:
        of_class = [
            one and BoxRegressor(_floats(one[0], pooled, 4), _floats(one[1], 4)) for one in values["regressors"]
        ]
        if len(of_class) != len(classes):
            raise ValueError(f"{len(of_class)} box regressors for {len(classes)} classes")
        regressors = BoxRegressors(tuple(of_class), float(values["regression_factor"]))

    return Detector(
        network=network,
        classes=classes,
        svms=svms,
        regressors=regressors,
        rules=WindowRules(**values["rules"] | {"scales": tuple(map(int, values["rules"]["scales"]))}),
        aligned=bool(values["aligned"]),
        test=SuppressionSettings(**values["test"]),
        proposals=dict(values["proposals"]),
    )


def _floats(value: Tensor, *shape: int) -> Tensor:
    """Returns a tensor if it is float32 of this shape and finite. Raises ValueError if it is not."""
    if value.dtype != torch.float32 or tuple(value.shape) != shape or not value.isfinite().all():
        raise ValueError(f"found {value.dtype} {list(value.shape)}, expected finite float32 {list(shape)}")
    return value.clone()
