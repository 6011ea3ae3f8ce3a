"""Trains the parts of a detector on cached maps: fine-tuning, SVMs with hard negatives, box regression.

Every part is saved in the run directory as soon as it is trained; a training that was interrupted resumes.

Letters: K windows of an image, C classes, d values of a feature.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sppnet.detect.detector import BoxRegressors, LinearSvms, head_of, layer_length
from sppnet.detect.mining import NegativeMiner, SvmSettings
from sppnet.detect.regression import BoxRegressor, train_regressor
from sppnet.detect.windows import Head, WindowsOfImages
from sppnet.network import SPPNet
from sppnet.runtime.files import atomic_file
from sppnet.runtime.progress import Progress
from sppnet.runtime.signals import Stopped, StopSignals, exit_code, write_to_stderr

AVERAGE_NORM = 20.0  # of features, to which SVMs and regressors have their settings, as in the paper's release
_SAMPLED_IMAGES, _SAMPLED_WINDOWS = 200, 200  # for the average norm, as in the release

SECONDS_BETWEEN_SAVES = 600.0


@dataclass(frozen=True, kw_only=True)
class RegressionSettings:
    """Box regression: the `regression` section, as in the paper's release. Raises ValueError for values out of range.

    The release trains on all windows. `most` bounds the memory: 20,000 windows of ZF-5 take 1 GB per class.
    """

    overlap: float = 0.5  # windows that overlap an object of the class at least so much are trained on
    ridge: float = 4000.0  # weight of the squared weights
    most: int = 20_000  # windows of a class, drawn at random

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1:
            raise ValueError(f"regression.overlap={self.overlap}: must be above 0, at most 1")
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"regression.ridge={self.ridge}: must be above 0")
        if self.most < 1:
            raise ValueError(f"regression.most={self.most}: must be at least 1")


def average_norms(data: WindowsOfImages, head: Head, lengths: Sequence[int], seed: int) -> list[float]:
    """Returns the average l2 norms of features of random windows of random images, for each layer.

    Args:
        data: the images.
        head: computes the features of layers side by side.
        lengths: the d of each layer.
        seed: chooses images and windows.
    """
    random = np.random.default_rng(seed)
    norms: list[list[Tensor]] = [[] for _ in lengths]
    images = random.permutation(len(data))[:_SAMPLED_IMAGES]
    with Progress("average norm of features", len(images)) as progress:
        for index in images.tolist():
            windows = data.windows(index)
            chosen = windows[random.permutation(len(windows))[:_SAMPLED_WINDOWS]]
            for of_layer, part in zip(
                norms, data.features(index, chosen, head).split(list(lengths), dim=1), strict=True
            ):
                of_layer.append(part.norm(dim=1).cpu())
            progress.add(1)
    return [float(torch.cat(of_layer).mean()) for of_layer in norms]


def train_svms(
    data: WindowsOfImages,
    network: SPPNet,
    layers: Sequence[str],
    settings: SvmSettings,
    folder: Path,
    *,
    autocast: torch.dtype | None,
    seed: int,
) -> list[LinearSvms]:
    """Trains the SVMs of all classes on features of several layers of a network, in one pass over all windows.

    Positives are the objects themselves, negatives windows that overlap every object of the class, difficult or not,
    less than `settings.negative_overlap` (arXiv:1406.4729v4, §4.1).

    Args:
        data: the images to train on.
        network: whose fully connected layers are used; its convolutions are those of the maps.
        layers: names of `sppnet.detect.detector.LAYERS`.
        settings: the SVMs.
        folder: keeps the state of an interrupted training, which resumes.
        autocast: the dtype of the fully connected layers, or None for float32.
        seed: chooses the windows that the average norm is taken of.

    Returns the SVMs of each layer.

    Raises ValueError if there are no objects, and `sppnet.runtime.signals.Stopped` after a stop signal.
    """
    head, lengths = head_of(network, layers, autocast), [layer_length(network, layer) for layer in layers]
    factors = [AVERAGE_NORM / norm if norm > 0 else 1.0 for norm in average_norms(data, head, lengths, seed)]
    scale = torch.cat([torch.full((length,), factor) for length, factor in zip(lengths, factors, strict=True)])

    def features(index: int, windows: np.ndarray, mirrored: bool) -> list[np.ndarray]:
        rows = (scale * data.features(index, windows, head, mirrored=mirrored).cpu()).half()
        return [part.numpy() for part in rows.split(lengths, dim=1)]

    objects = _features_of_objects(data, features, settings, len(layers))
    miners = [NegativeMiner(positives, settings) for positives in objects]
    _mine(data, features, miners, settings, folder / "mining.npz")
    for layer, miner in zip(layers, miners, strict=True):
        miner.finish()
        if miner.dropped:
            print(f"SVMs on {layer}: {miner.dropped:,} hard negatives were left out; svm.gigabytes allows more")
    return [
        LinearSvms(layer, torch.from_numpy(miner.weights), torch.from_numpy(miner.biases), factor)
        for layer, miner, factor in zip(layers, miners, factors, strict=True)
    ]


# Computes the features of windows of an image, or of its mirror image, by each of some layers: float16 (K, d) each.
_Features = Callable[[int, np.ndarray, bool], list[np.ndarray]]


def _sides(settings: SvmSettings) -> tuple[bool, ...]:
    """Returns whether to mirror an image, for each time that it is trained on."""
    return (False, True) if settings.mirrored else (False,)


def _features_of_objects(
    data: WindowsOfImages, features: _Features, settings: SvmSettings, layers: int
) -> list[list[np.ndarray]]:
    """Computes the features of all objects: for each layer and class, float16 (p, d)."""
    found: list[list[list[np.ndarray]]] = [[[] for _ in data.classes] for _ in range(layers)]
    with Progress("features of objects", len(data)) as progress:
        for index in range(len(data)):
            objects = data.objects(index)
            for mirrored in _sides(settings):
                for of_layer, rows in zip(found, features(index, objects.boxes, mirrored), strict=True):
                    for label, of_class in enumerate(of_layer):
                        of_class.append(rows[objects.labels == label])
            progress.add(1)
    return [[np.concatenate(of_class) for of_class in of_layer] for of_layer in found]


def _mine(
    data: WindowsOfImages, features: _Features, miners: Sequence[NegativeMiner], settings: SvmSettings, path: Path
) -> None:
    """Shows all windows to the miners, image by image. Saves their state to `path` along the way and when stopped."""
    start, signals, saved_at = _resumed(miners, path), StopSignals(), time.monotonic()
    with signals.handled(), Progress("hard negatives", len(data) - start) as progress:
        for index in range(start, len(data)):
            windows = data.windows(index)
            negative = data.is_negative(index, windows, settings.negative_overlap)
            for mirrored in _sides(settings):
                for miner, rows in zip(miners, features(index, windows, mirrored), strict=True):
                    miner.add(rows, negative)
            progress.add(1)

            if signals.received is not None or time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                _save_state(miners, index + 1, path)
                saved_at = time.monotonic()
            if signals.received is not None:
                write_to_stderr(
                    f"stopped by {signals.received.name}; the same command resumes from image {index + 1:,}"
                )
                raise Stopped(exit_code(signals.received))


def _resumed(miners: Sequence[NegativeMiner], path: Path) -> int:
    """Restores a saved state, and returns the first image that is left."""
    if not path.exists():
        return 0
    with np.load(path, allow_pickle=False) as saved:
        for number, miner in enumerate(miners):
            prefix = f"{number}/"
            miner.load_state({key.removeprefix(prefix): saved[key] for key in saved.files if key.startswith(prefix)})
        start = int(saved["images"])
    print(f"hard negatives: resuming after {start:,} images", flush=True)
    return start


def _save_state(miners: Sequence[NegativeMiner], images: int, path: Path) -> None:
    arrays = {f"{number}/{key}": value for number, miner in enumerate(miners) for key, value in miner.state().items()}
    with atomic_file(path) as file:
        np.savez(file, images=np.array(images), **arrays)


def train_regressors(data: WindowsOfImages, settings: RegressionSettings, folder: Path, *, seed: int) -> BoxRegressors:
    """Trains the box regressors of all classes on pooled windows near objects; saves each in `folder`.

    Args:
        data: the images to train on.
        settings: windows and ridge.
        folder: keeps the regressors of an interrupted training, which resumes.
        seed: chooses the windows of classes that have too many, and those that the average norm is taken of.
    """
    (norm,) = average_norms(data, lambda pooled: pooled, [data.network.pooled_length], seed)
    factor = AVERAGE_NORM / norm if norm > 0 else 1.0
    near = [_windows_near_objects(data, index, settings.overlap) for index in range(len(data))]
    regressors = []
    with Progress("box regression", len(data.classes), "classes") as progress:
        for label in range(len(data.classes)):
            path = folder / f"regressor{label}.npz"
            if not path.exists():
                _save_regressor(_train_class(data, near, label, settings, factor, seed), path)
            regressors.append(_load_regressor(path))
            progress.add(1)
    return BoxRegressors(tuple(regressors), factor)


def _windows_near_objects(data: WindowsOfImages, index: int, limit: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns for each class the windows that overlap an object enough, and that object's boxes: (n, 4) each."""
    windows = np.concatenate([data.windows(index), data.objects(index).boxes])
    highest, nearest = data.overlaps(index, windows)
    boxes = data.objects(index).boxes
    chosen = [highest[:, label] >= limit for label in range(len(data.classes))]
    return [(windows[mask], boxes[nearest[mask, label]]) for label, mask in enumerate(chosen)]


def _train_class(
    data: WindowsOfImages,
    near: Sequence[list[tuple[np.ndarray, np.ndarray]]],
    label: int,
    settings: RegressionSettings,
    factor: float,
    seed: int,
) -> BoxRegressor | None:
    """Trains the regressor of a class; None without windows near objects of it."""
    counts = [len(of_image[label][0]) for of_image in near]
    kept = np.zeros(sum(counts), bool)
    kept[np.random.default_rng([seed, label]).permutation(len(kept))[: settings.most]] = True
    if not kept.any():
        return None

    features, windows, boxes = [], [], []
    for index, mask in enumerate(np.split(kept, np.cumsum(counts)[:-1])):
        if mask.any():
            chosen = near[index][label][0][mask]
            features.append(factor * data.features(index, chosen, lambda pooled: pooled).cpu().numpy())
            windows.append(chosen)
            boxes.append(near[index][label][1][mask])
    return train_regressor(
        np.concatenate(features), np.concatenate(windows), np.concatenate(boxes), ridge=settings.ridge
    )


def _save_regressor(regressor: BoxRegressor | None, path: Path) -> None:
    arrays = {} if regressor is None else {"weights": regressor.weights.numpy(), "bias": regressor.bias.numpy()}
    with atomic_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _load_regressor(path: Path) -> BoxRegressor | None:
    with np.load(path, allow_pickle=False) as saved:
        if not saved.files:
            return None
        return BoxRegressor(torch.from_numpy(saved["weights"]), torch.from_numpy(saved["bias"]))
