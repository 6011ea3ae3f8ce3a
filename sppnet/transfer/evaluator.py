"""Trains linear SVMs on the features of every layer and split, and saves their decision values."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.network import SPPNet, weights_digest
from sppnet.results.scores import Scores, read_scores, write_scores
from sppnet.results.transfers import PIXELS, TRANSFER_RULES
from sppnet.runtime.environment import environment
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.names import printable
from sppnet.runtime.progress import Progress
from sppnet.transfer.feature_files import Features
from sppnet.transfer.features import PIXELS_SIDE, FeatureExtractor, extract_features
from sppnet.transfer.probe import Svm, check_feature_memory, decisions_by_features, decisions_by_gram, gram_matrix
from sppnet.transfer.protocols import TransferData


@dataclass(frozen=True, eq=False)
class FrozenNetwork:
    """A network to test.

    network: in eval mode.
    checkpoint: the digest of its checkpoint; None if it has none.
    record: plain values that describe it in saved decisions.
    layers: names of `SPPNet.layers`, or PIXELS.
    suffix: after the names of layers in names of files: "-untrained-seed0" for the baseline of random weights.
    """

    network: SPPNet
    checkpoint: str | None
    record: dict[str, Any]
    layers: Sequence[str]
    suffix: str = ""

    @cached_property
    def weights(self) -> str:
        """`weights_digest` of the network."""
        return weights_digest(self.network)


# The `network` record of the pixel baseline.
_PIXELS_RECORD: dict[str, Any] = {
    "name": PIXELS,
    "levels": None,
    "variant": None,
    "trained_on": None,
    "on_imagenet": False,
    "seed": None,
    "setting": PIXELS,
    "text": f"raw {PIXELS_SIDE} x {PIXELS_SIDE} pixels",
}


_GRAM_SOLVER = "SVC on the Gram matrix"


@dataclass(frozen=True, kw_only=True)
class View:
    """How an image is resized and cropped for the network: see `sppnet.transfer.features.extract_features`."""

    view: str
    scale: int
    aligned: bool


def transfer_to_files(
    frozen: FrozenNetwork,
    data: TransferData,
    digests: np.ndarray,
    view: View,
    svm: Svm,
    hardware: Hardware,
    *,
    features_folder: Path,
    folder: Path,
    title: str,
    about: dict[str, Any],
) -> list[Scores]:
    """Returns the decision values of every layer and split, layer by layer, from files or by training SVMs.

    Saved decision values count if network, layer, view, precision, C and the images of the split (names, labels and
    contents) are the same. Features are extracted only for layers that lack decision values.

    Args:
        frozen: the network and its layers.
        data: the images and splits.
        digests: `content_digests` of the images.
        view: what goes through the network.
        svm: settings of the SVMs.
        hardware: what the network runs on.
        features_folder: where `extract_features` keeps the features.
        folder: of the decision values.
        title: the name of the work in messages.
        about: more plain values to save.

    Raises what `check_memory` and `extract_features` raise.
    """
    jobs = _jobs(frozen, data, digests, view, svm, hardware, folder)
    saved = {job.path: decisions for job in jobs if (decisions := _saved(job)) is not None}
    missing = list(dict.fromkeys(job.layer for job in jobs if job.path not in saved))
    if not missing:
        print(f"{title}: done already ({folder})", flush=True)
        return [saved[job.path] for job in jobs]

    check_memory(frozen.network, missing, data, view, svm)
    if _solver(data, svm) != _GRAM_SOLVER:
        print(
            f"{title}: the Gram matrix of {len(data.truth):,} images does not fit into svm.gigabytes="
            f"{svm.memory / 1e9:.3g}; using LinearSVC, which also regularizes the bias",
            flush=True,
        )
    features = extract_features(
        frozen.network,
        data.images,
        missing,
        **vars(view),
        folder=features_folder,
        digests=digests,
        weights=frozen.weights,
        hardware=hardware,
        title=title,
    )
    record = {**about, **environment(gpus=hardware.processes), "network": frozen.record}
    for layer in missing:
        left = [job for job in jobs if job.layer == layer and job.path not in saved]
        saved |= _decide_layer(left, features[layer], data, svm, hardware, record, f"{title}, {layer}")
    return [saved[job.path] for job in jobs]


def check_memory(network: SPPNet, layers: Sequence[str], data: TransferData, view: View, svm: Svm) -> None:
    """Raises ValueError if the SVMs of a layer and split exceed `svm.memory` by either solver. Extracts no features."""
    if _solver(data, svm) == _GRAM_SOLVER:
        return
    lengths = FeatureExtractor(network, layers=layers, **vars(view)).lengths()
    for layer in layers:
        for split in data.splits:
            check_feature_memory(layer, lengths[layer], data.truth[split.train], svm)


@dataclass(frozen=True, eq=False)
class _Job:
    """The SVMs of one layer and split.

    identity: everything that decides the decision values, as it is saved with them.
    """

    layer: str
    split: int
    path: Path
    identity: dict[str, Any]


def _jobs(
    frozen: FrozenNetwork,
    data: TransferData,
    digests: np.ndarray,
    view: View,
    svm: Svm,
    hardware: Hardware,
    folder: Path,
) -> list[_Job]:
    # What all jobs share, then the images of every split.
    common = {
        "rules": TRANSFER_RULES,
        "checkpoint": frozen.checkpoint or frozen.weights,
        "weights": frozen.weights,
        "precision": "float32" if hardware.autocast is None else "bf16",
        **vars(view),
        "C": svm.C,
        "solver": _solver(data, svm),
    }
    images = [
        {"train_images": data.fingerprint(split.train, digests), "images": data.fingerprint(split.test, digests)}
        for split in data.splits
    ]

    return [
        _Job(
            layer,
            number,
            folder / f"{layer}{frozen.suffix}-split{number}.npz",
            {**common, "layer": layer, **images[number]},
        )
        for layer in frozen.layers
        for number in range(len(data.splits))
    ]


def _solver(data: TransferData, svm: Svm) -> str:
    training = max(len(split.train) for split in data.splits)
    return _GRAM_SOLVER if svm.gram_fits(len(data.truth), training) else "LinearSVC"


def _saved(job: _Job) -> Scores | None:
    """Returns the saved decision values of a job; None if absent, made with other settings, or damaged."""
    if not job.path.is_file():
        return None
    try:
        saved = read_scores(job.path, "transfer")
    except ValueError:
        print(f"{printable(str(job.path))}: damaged, and decided again", flush=True)
        return None
    return saved if all(saved.about.get(key) == value for key, value in job.identity.items()) else None


def _decide_layer(
    jobs: Sequence[_Job],
    features: Features,
    data: TransferData,
    svm: Svm,
    hardware: Hardware,
    record: dict[str, Any],
    title: str,
) -> dict[Path, Scores]:
    """Trains the SVMs of splits on the features of one layer. Writes their decision values and returns them by path."""
    gram = None
    if _solver(data, svm) == _GRAM_SOLVER:
        gram = gram_matrix(features, memory=svm.memory, device=hardware.device, title=f"{title}: Gram matrix")

    decided = {}
    with Progress(f"{title}: SVMs", len(jobs), "splits") as progress:
        for job in jobs:
            decided[job.path] = _decide(job, features, gram, data, svm, record)
            write_scores(job.path, decided[job.path])
            progress.add(1)
    return decided


def _decide(
    job: _Job, features: Features, gram: np.ndarray | None, data: TransferData, svm: Svm, record: dict[str, Any]
) -> Scores:
    """Trains the SVMs of one split on the features of one layer, and returns their decision values."""
    started = time.perf_counter()
    train, test = data.splits[job.split]
    if gram is not None:
        values = decisions_by_gram(gram, data.truth, train, test, svm)
    else:
        values = decisions_by_features(features, data.truth, train, test, svm)

    about = {
        **job.identity,
        **record,
        "classes": list(data.classes),
        "length": features.length,
        "split": job.split,
        "splits": len(data.splits),
        "n_train": len(train),
        "seconds": time.perf_counter() - started,
    }
    if job.layer == PIXELS:
        about["network"] = _PIXELS_RECORD
    names = np.array([data.images.name(int(i)) for i in test])
    return Scores(values, data.labels(test), names, about)
