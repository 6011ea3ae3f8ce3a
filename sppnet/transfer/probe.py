"""Linear SVMs on frozen features, one per class, by scikit-learn: C = 1 and no augmentation (arXiv:1406.4729v4, §3.2).

Letters: n images, m training images, t test images, d values of a feature.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC, LinearSVC

from sppnet.runtime.machine import core_count
from sppnet.runtime.progress import Progress
from sppnet.transfer.feature_files import Features


@dataclass(frozen=True, kw_only=True)
class Svm:
    """The linear SVMs: the `svm` section. Raises ValueError for values out of range."""

    C: float = 1.0  # weight of the training errors; 1 in the paper
    jobs: int | None = None  # classes trained at the same time; None: one per core
    gigabytes: float | None = None  # of memory for Gram matrices and features; None: a quarter of the machine's

    def __post_init__(self) -> None:
        if not 0 < self.C < math.inf:
            raise ValueError(f"svm.C={self.C}: must be above 0")
        if self.jobs is not None and not 1 <= self.jobs <= 1024:
            raise ValueError(f"svm.jobs={self.jobs}: must be from 1 to 1024")
        if self.gigabytes is not None and not 0 < self.gigabytes < 1e6:
            raise ValueError(f"svm.gigabytes={self.gigabytes}: must be above 0")

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

    def gram_fits(self, images: int) -> bool:
        """Whether the Gram matrix of so many images, and its slice for a split in float64, fit into `memory`."""
        return 12 * images**2 <= self.memory


def gram_matrix(features: Features, *, memory: int, device: str = "cpu", title: str = "Gram matrix") -> np.ndarray:
    """Computes the dot products of all pairs of features: float32 (n, n).

    It is computed once for all splits and classes, block by block on the device, so that more features than memory can
    be used.

    Args:
        features: of n images.
        memory: bytes for the blocks of features.
        device: "cpu" or "cuda".
        title: of the progress bar.
    """
    n = len(features.values)
    block = max(1, min(n, memory // (12 * features.length)))  # two blocks in float32, one also in float16
    gram = np.empty((n, n), np.float32)
    starts = range(0, n, block)
    with Progress(title, len(starts) * (len(starts) + 1) // 2, "blocks") as progress:
        for i in starts:
            rows = features.rows(slice(i, i + block), device)
            for j in starts[: i // block + 1]:
                columns = rows if i == j else features.rows(slice(j, j + block), device)
                product = (rows @ columns.T).cpu().numpy()
                gram[i : i + block, j : j + block] = product
                gram[j : j + block, i : i + block] = product.T
                progress.add(1)
    return gram


def decisions_by_gram(gram: np.ndarray, truth: np.ndarray, train: np.ndarray, test: np.ndarray, svm: Svm) -> np.ndarray:
    """Trains one SVM per class on `train`, and returns their decision values for `test`: float32 (t, classes).

    They are those of `SVC(kernel="linear")` on the features themselves, up to rounding.

    Args:
        gram: float32 (n, n), of `gram_matrix`.
        truth: int8 (n, classes): 1 where the image shows the class, -1 where not, 0 where it is left out of training.
        train: int (m,), indices of the training images.
        test: int (t,), indices of the test images.
        svm: the settings.
    """
    kernel = gram[np.ix_(train, train)].astype(np.float64)
    weights = np.zeros((truth.shape[1], len(train)))
    biases = np.zeros(truth.shape[1])

    def fit(label: int) -> None:
        """Trains the SVM of one class: weights of the training images, and the bias."""
        targets = truth[train, label]
        used = np.flatnonzero(targets)
        part = kernel if len(used) == len(train) else kernel[np.ix_(used, used)]
        machine = SVC(C=svm.C, kernel="precomputed").fit(part, targets[used])
        weights[label, used[machine.support_]] = machine.dual_coef_[0]
        biases[label] = machine.intercept_[0]

    _for_every_class(fit, truth.shape[1], svm.threads)
    products = gram[np.ix_(test, train)]
    return (products @ weights.T.astype(np.float32) + biases.astype(np.float32)).astype(np.float32)


def decisions_by_features(
    features: Features, truth: np.ndarray, train: np.ndarray, test: np.ndarray, svm: Svm
) -> np.ndarray:
    """Does what `decisions_by_gram` does without a Gram matrix, by LinearSVC, whose bias is regularized.

    Raises ValueError if the training features exceed `svm.memory`.
    """
    needed = 16 * len(train) * features.length  # float64, twice: liblinear copies them
    if needed > svm.memory:
        raise ValueError(
            f"{features.folder.name}: the features of {len(train):,} training images take {needed / 1e9:,.1f} GB, and "
            f"svm.gigabytes allows {svm.memory / 1e9:,.1f}; use a layer with fewer values, or fewer images"
        )
    rows = features.rows(train).numpy().astype(np.float64)
    weights = np.zeros((truth.shape[1], features.length))
    biases = np.zeros(truth.shape[1])

    def fit(label: int) -> None:
        targets = truth[train, label]
        used = targets != 0
        machine = LinearSVC(C=svm.C, loss="hinge", random_state=0, max_iter=10_000)
        machine.fit(rows if used.all() else rows[used], targets[used])
        weights[label], biases[label] = machine.coef_[0], machine.intercept_[0]

    with _one_warning():
        _for_every_class(fit, truth.shape[1], svm.threads)
    parts = [
        features.rows(test[i : i + 1024]).numpy() @ weights.T.astype(np.float32) for i in range(0, len(test), 1024)
    ]
    return (np.concatenate(parts) + biases.astype(np.float32)).astype(np.float32)


def _for_every_class(fit: Callable[[int], None], classes: int, threads: int) -> None:
    """Calls `fit` for every class in threads: the solvers release the interpreter's lock, and share the kernel."""
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
        warnings.warn(f"{stopped} SVMs stopped before they converged; a smaller svm.C converges sooner", stacklevel=3)
