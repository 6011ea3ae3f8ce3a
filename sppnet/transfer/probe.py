"""Linear SVMs on frozen features, one per class, by scikit-learn; C = 1 as in arXiv:1406.4729v1, §3.2.

Letters: n images, m training images, t test images, d values of a feature.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC, LinearSVC
from torch import Tensor

from sppnet.runtime.machine import core_count
from sppnet.runtime.progress import Progress
from sppnet.transfer.feature_files import Features

# After these, solvers stop with a warning. With C=1 they converge long before; with a large C some never do.
_MOST_STEPS = 1_000_000  # of libsvm, of two images each
_MOST_PASSES = 10_000  # of liblinear, through all images


@dataclass(frozen=True, kw_only=True)
class Svm:
    """The linear SVMs: the `svm` section. Raises ValueError for values out of range."""

    C: float = 1.0  # weight of the training errors; 1 in v1 of the paper
    jobs: int | None = None  # classes trained at the same time; None: one per core
    gigabytes: float | None = None  # of memory for Gram matrices and features; None: a quarter of the machine's

    def __post_init__(self) -> None:
        if not 0 < self.C < math.inf:
            raise ValueError(f"svm.C={self.C}: must be a number above 0, and finite")
        if self.jobs is not None and not 1 <= self.jobs <= 1024:
            raise ValueError(f"svm.jobs={self.jobs}: must be from 1 to 1024")
        if self.gigabytes is not None and not 0 < self.gigabytes < 1e6:
            raise ValueError(f"svm.gigabytes={self.gigabytes}: must be a number above 0, and below 1,000,000")

    @property
    def threads(self) -> int:
        """The classes trained at the same time."""
        return self.jobs or core_count()

    @property
    def memory(self) -> int:
        """The bytes of memory for Gram matrices and features."""
        if self.gigabytes is not None:
            return int(1e9 * self.gigabytes)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4

    def gram_fits(self, images: int, training: int) -> bool:
        """Whether the Gram matrix of so many images, and SVMs on `training` of them, fit into `memory`.

        Half of the memory is kept for blocks of features while the matrix is computed; small blocks are slow.
        """
        return max(8 * images**2, sum(_gram_bytes(images, training))) <= self.memory


def _gram_bytes(images: int, training: int) -> tuple[int, int]:
    """Returns the bytes that all classes share, and those that each class in training takes as well.

    Shared are the Gram matrix in float32 and its part for the training images in float64. A class takes a copy of that
    part without the images that it ignores, and libsvm's cache of it in float32.
    """
    return 4 * images**2 + 8 * training**2, 12 * training**2


def gram_matrix(features: Features, *, memory: int, device: str = "cpu", title: str = "Gram matrix") -> np.ndarray:
    """Computes the dot products of all pairs of features: float32 (n, n).

    It is computed once for all splits and classes, block by block on the device, so that more features than memory can
    be used.

    Args:
        features: of n images.
        memory: bytes for the matrix and the blocks of features; blocks of single features may take more.
        device: "cpu" or "cuda".
        title: of the progress bar.
    """
    n = len(features.values)
    left = memory - 4 * n**2
    if device != "cpu":
        left = min(left, torch.cuda.mem_get_info(device)[0] // 2)
    # Memory per row: one block in float32, the other in float16, float32 and normalized; and products with n rows.
    block = max(1, min(n, left // (14 * features.length + 4 * n)))
    gram = np.empty((n, n), np.float32)
    starts = range(0, n, block)
    with Progress(title, len(starts) * (len(starts) + 1) // 2, "blocks") as progress:
        for i in starts:
            rows = features.rows(slice(i, i + block), device)
            for j in starts[: i // block + 1]:
                product = _products(rows, features, slice(j, j + block)) if i != j else (rows @ rows.T).cpu().numpy()
                gram[i : i + block, j : j + block] = product
                gram[j : j + block, i : i + block] = product.T
                progress.add(1)
    return gram


def _products(rows: Tensor, features: Features, others: slice) -> np.ndarray:
    """Returns the dot products of rows, float32 (k, d), with other features: float32 (k, l)."""
    return (rows @ features.rows(others, str(rows.device)).T).cpu().numpy()


def decisions_by_gram(gram: np.ndarray, truth: np.ndarray, train: np.ndarray, test: np.ndarray, svm: Svm) -> np.ndarray:
    """Trains one SVM per class on `train`, and returns their decision values for `test`: float32 (t, classes).

    They are those of `SVC(kernel="linear")` on the features themselves, up to rounding. Warns once if SVMs did not
    converge.

    Args:
        gram: float32 (n, n), of `gram_matrix`.
        truth: int8 (n, classes): 1 where the image shows the class, -1 where not, 0 where it is left out of training.
        train: int (m,), indices of the training images.
        test: int (t,), indices of the test images.
        svm: the settings.
    """
    weights, biases = _train_by_gram(gram, truth, train, svm)
    return (gram[np.ix_(test, train)] @ weights.T.astype(np.float32) + biases.astype(np.float32)).astype(np.float32)


def _train_by_gram(gram: np.ndarray, truth: np.ndarray, train: np.ndarray, svm: Svm) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of the training images, float64 (classes, m), and the biases, float64 (classes,)."""
    kernel = gram[np.ix_(train, train)].astype(np.float64)
    weights = np.zeros((truth.shape[1], len(train)))
    biases = np.zeros(truth.shape[1])

    def fit(label: int) -> None:
        targets = truth[train, label]
        used = np.flatnonzero(targets)
        part = kernel if len(used) == len(train) else kernel[np.ix_(used, used)]
        machine = SVC(C=svm.C, kernel="precomputed", max_iter=_MOST_STEPS).fit(part, targets[used])
        weights[label, used[machine.support_]] = machine.dual_coef_[0]
        biases[label] = machine.intercept_[0]

    _for_every_class(fit, truth.shape[1], _affordable(svm, *_gram_bytes(len(gram), len(train))))
    return weights, biases


def decisions_by_features(
    features: Features, truth: np.ndarray, train: np.ndarray, test: np.ndarray, svm: Svm
) -> np.ndarray:
    """Trains LinearSVC on the features instead of `decisions_by_gram`; it regularizes the bias as well.

    One class is trained at a time, whatever `svm.jobs`.

    Raises ValueError as `check_feature_memory`.
    """
    check_feature_memory(features.folder.name, features.length, truth[train], svm)
    weights, biases = _train_by_features(features, truth[train], train, svm.C)
    weights = weights.T.astype(np.float32)
    parts = [features.rows(test[i : i + 1024]).numpy() @ weights for i in range(0, len(test), 1024)]
    return (np.concatenate(parts) + biases.astype(np.float32)).astype(np.float32)


def check_feature_memory(layer: str, length: int, truth: np.ndarray, svm: Svm) -> None:
    """Raises ValueError if `decisions_by_features` would exceed `svm.memory`.

    Args:
        layer: the name of the features.
        length: values of a feature.
        truth: int8 (m, classes), of the training images.
        svm: the settings.
    """
    needed = sum(_feature_bytes(length, truth))
    if needed > svm.memory:
        raise ValueError(
            f"{layer}: SVMs on the features of {len(truth):,} training images take {needed / 1e9:,.3g} GB, and "
            f"svm.gigabytes allows {svm.memory / 1e9:,.3g}; raise it, or use a layer with fewer values or fewer images"
        )


def _train_by_features(
    features: Features, truth: np.ndarray, train: np.ndarray, cost: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of the values, float64 (classes, d), and the biases; `truth` is of the training images."""
    rows = features.rows(train).numpy().astype(np.float64)
    weights = np.zeros((truth.shape[1], features.length))
    biases = np.zeros(truth.shape[1])

    def fit(label: int) -> None:
        targets = truth[:, label]
        used = targets != 0
        machine = LinearSVC(C=cost, loss="hinge", random_state=0, max_iter=_MOST_PASSES)
        machine.fit(rows if used.all() else rows[used], targets[used])
        weights[label], biases[label] = machine.coef_[0], machine.intercept_[0]

    # One class after the other: threads share liblinear's random numbers, and no command would repeat its results.
    _for_every_class(fit, truth.shape[1], threads=1)
    return weights, biases


def _feature_bytes(length: int, truth: np.ndarray) -> tuple[int, int]:
    """Returns the bytes that all classes share, and those that the class in training takes as well.

    Shared are the features in float64. Liblinear copies every value into 16 bytes, and a class that ignores images
    takes another copy without them.
    """
    values = len(truth) * length
    return 8 * values, (16 if truth.all() else 24) * values


def _affordable(svm: Svm, shared: int, of_class: int) -> int:
    """Returns how many classes to train at the same time so that they fit into `svm.memory`, at least 1."""
    return max(1, min(svm.threads, (svm.memory - shared) // max(1, of_class)))


def _for_every_class(fit: Callable[[int], None], classes: int, threads: int) -> None:
    """Calls `fit` for every class in threads: the solvers release the interpreter's lock, and share the kernel."""
    with _one_warning():
        Parallel(n_jobs=min(threads, classes), prefer="threads")(delayed(fit)(label) for label in range(classes))


@contextmanager
def _one_warning() -> Iterator[None]:
    """Warns once if solvers stopped before they converged, instead of once per class."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    others = [warning for warning in caught if not issubclass(warning.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if stopped := len(caught) - len(others):
        noun = "SVM" if stopped == 1 else "SVMs"
        warnings.warn(f"{stopped} {noun} stopped before converging; a smaller svm.C converges sooner", stacklevel=3)
