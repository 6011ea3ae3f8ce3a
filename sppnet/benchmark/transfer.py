"""What transfer costs: extracting features against the forward pass, and SVMs on a Gram matrix against LinearSVC."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import LinearSVC

from sppnet.benchmark.bench import Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Works
from sppnet.data.sources import Images, content_digests, open_data
from sppnet.network import SPPNet, weights_digest
from sppnet.runtime.hardware import Hardware
from sppnet.transfer.feature_files import Features
from sppnet.transfer.features import FeatureExtractor, extract_features
from sppnet.transfer.probe import Svm, decisions_by_gram, gram_matrix

# A hundredth of the paper's Caltech-101 (arXiv:1406.4729v4, §3.3): of its 9,144 images, 10 splits and 102 classes.
_IMAGES, _TRAIN, _TEST, _LENGTH = 9144, 3060, 4250, 4096
_CLASSES = 10  # of one split
_LAYERS = ["pool5", "fc7"]


def comparisons(bench: Bench) -> Iterator[Comparison]:
    """Yields extracting features, and training SVMs."""
    yield Comparison(
        "features of files: forward passes only", Goal(0.9, None), partial(_of_drawn_files, bench), weight=4
    )
    svms_on_gram = partial(svms, bench.folder)
    yield Comparison("SVMs on a Gram matrix: LinearSVC one by one", Goal(4, None), svms_on_gram, weight=4)


def _of_drawn_files(bench: Bench) -> Works:
    images = open_data("folder", root=str(bench.files())).train
    hardware = Hardware(accelerator="gpu" if bench.device.type == "cuda" else "cpu")
    return extraction(bench.network().eval(), images, bench.folder / "features", hardware)


def extraction(network: SPPNet, images: Images, folder: Path, hardware: Hardware) -> Works:
    """Returns extracting features of whole images from files, and the forward passes alone on images in memory."""
    # As in the command, which hashes images and network once for all views.
    known: dict[str, Any] = {"digests": content_digests(images, "reading"), "weights": weights_digest(network)}
    runs = itertools.count()

    def extract() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            extract_features(network, images, _LAYERS, folder=folder / f"{next(runs)}", hardware=hardware, **known)

    extractor = FeatureExtractor(
        network, layers=_LAYERS, view="full", scale=224, pixels=hardware.pixels, autocast=hardware.autocast
    )
    batches = list(extractor.load(images, range(len(images)), workers=0))

    def forward() -> None:
        with torch.autocast(extractor.device.type, extractor.autocast, enabled=extractor.autocast is not None):
            for batch in batches:
                extractor(batch)

    return Works(extract, forward)


def svms(folder: Path) -> Works:
    """Returns training 10 SVMs of one split on a hundredth of a Gram matrix, and the same by LinearSVC one by one."""
    random = np.random.default_rng(0)
    labels = random.integers(0, _CLASSES, _IMAGES)
    centers = random.normal(0, 1, (_CLASSES, _LENGTH)).astype(np.float32)
    rows = np.maximum(random.normal(0, 2, (_IMAGES, _LENGTH)).astype(np.float32) + centers[labels], 0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    features = Features(folder, rows.astype(np.float16), np.ones(_IMAGES, bool))

    truth = np.where(np.arange(_CLASSES) == labels[:, None], 1, -1).astype(np.int8)
    order = random.permutation(_IMAGES)
    train, test = order[:_TRAIN], order[_TRAIN : _TRAIN + _TEST]
    settings = Svm()
    part = Features(folder, features.values[: _IMAGES // 10], features.done[: _IMAGES // 10])
    gram = rows @ rows.T

    def ours() -> None:
        gram_matrix(part, memory=settings.memory)
        decisions_by_gram(gram, truth, train, test, settings)

    def one_by_one() -> None:
        vectors = features.rows(train).numpy()
        tested = features.rows(test).numpy()
        for label in range(_CLASSES):
            LinearSVC(C=1, loss="hinge", random_state=0).fit(vectors, truth[train, label]).decision_function(tested)

    return Works(ours, one_by_one)
