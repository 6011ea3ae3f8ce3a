"""Linear SVMs of a detector, one per class, trained on all objects and on the hardest of very many negatives.

Features of all windows do not fit into memory: 82 GB for the trainval images of VOC 2007. So they are seen once, image
by image, and each class keeps only those negatives that its SVM does not reject clearly.

Letters: K windows of an image, C classes, d values of a feature, p positives, m cached negatives of a class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.svm import LinearSVC

# Of liblinear. The SVMs that only choose negatives are trained roughly, in a quarter of the time, with weights that
# differ by a few per cent of the largest.
_TOLERANCE, _ROUGH_TOLERANCE = 1e-4, 1e-2


@dataclass(frozen=True, kw_only=True)
class SvmSettings:
    """The SVMs and the mining of negatives: the `svm` section. Raises ValueError for values out of range.

    The paper says "standard hard negative mining", "iterated once" (arXiv:1406.4729v4, §4.1); the values are those of
    its release (https://github.com/ShaoqingRen/SPP_net, spp_train.m), but for the two scores. The release has -1.0001
    and -1.2 there, and its SVMs are not quite those of all negatives: what an early SVM rejects is never seen again.
    """

    C: float = 1e-3  # weight of the training errors, for features of an average norm of 20
    positive_weight: float = 2.0  # of the errors of positives, in errors of negatives
    bias: float = 10.0  # value of the constant feature whose weight is the bias
    negative_overlap: float = 0.3  # windows that overlap every object of the class less are its negatives
    hard_score: float = -1.3  # negatives with at least this score are cached; the margin ends at -1
    easy_score: float = -1.5  # cached negatives below this score are dropped after a training
    train_after: int = 2000  # new negatives of a class after which its SVM is trained again, if it had no more before
    mirrored: bool = False  # whether the mirror images are trained on as well
    gigabytes: float = 4.0  # of memory for the negatives of all classes

    def __post_init__(self) -> None:
        for name in ("C", "positive_weight", "bias", "gigabytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"svm.{name}={getattr(self, name)}: must be above 0")
        if self.train_after < 1:
            raise ValueError(f"svm.train_after={self.train_after}: must be at least 1")
        if not 0 < self.negative_overlap <= 1:
            raise ValueError(f"svm.negative_overlap={self.negative_overlap}: must be above 0, at most 1")
        if not self.easy_score < self.hard_score < -1:
            raise ValueError(
                f"svm.easy_score={self.easy_score}, svm.hard_score={self.hard_score}: both must be below -1, the "
                "margin, and easy_score the lower one, so that no negative is cached and dropped in turn"
            )


@dataclass
class _Class:
    """The SVM of a class, and the negatives that it is trained on."""

    weights: np.ndarray  # float32 (d,)
    bias: float
    negatives: list[np.ndarray] = field(default_factory=list)  # float16 (m_i, d), in the order of the images
    new: int = 0  # negatives since the last training

    @property
    def old(self) -> int:
        """The number of negatives of the last training that were kept."""
        return sum(map(len, self.negatives)) - self.new


class NegativeMiner:
    """Trains the SVMs of all classes while negatives arrive image by image.

    Args:
        positives: float16 (p, d) for each of C classes. A class without any gets weights of 0 and a bias of -1.
        settings: the SVMs.

    Raises ValueError without positives of any class.
    """

    def __init__(self, positives: Sequence[np.ndarray], settings: SvmSettings) -> None:
        if not any(len(rows) for rows in positives):
            raise ValueError("SVMs: found no objects to train on")
        self.positives, self.settings = positives, settings
        length = positives[0].shape[1]
        self.classes = [_Class(np.zeros(length, np.float32), -1.0 if len(rows) == 0 else 0.0) for rows in positives]
        # Negatives per class, of 2 bytes a value; the other half of the memory is for those that are new.
        self.most = max(1, int(1e9 * settings.gigabytes) // (2 * 2 * length * len(positives)))
        self.dropped = 0  # negatives for lack of memory

    @property
    def weights(self) -> np.ndarray:
        """The weights of the SVMs: float32 (d, C)."""
        return np.stack([one.weights for one in self.classes], axis=1)

    @property
    def biases(self) -> np.ndarray:
        """The biases of the SVMs: float32 (C,)."""
        return np.array([one.bias for one in self.classes], np.float32)

    def add(self, features: np.ndarray, negative: np.ndarray) -> None:
        """Caches the hard negatives of an image, and trains the SVMs that have many new ones.

        Args:
            features: of windows, float16 (K, d).
            negative: bool (K, C), whether the window is a negative of the class.
        """
        scores = features.astype(np.float32) @ self.weights + self.biases
        # Before its first training an SVM has no opinion: all negatives of the first image are hard.
        hard = negative & (scores >= self.settings.hard_score)
        waiting = []
        for label, one in enumerate(self.classes):
            rows = features[hard[:, label]]
            if len(self.positives[label]) and len(rows):
                first = not one.negatives
                one.negatives.append(rows)
                one.new += len(rows)
                # Trained again when its negatives have doubled, so that all trainings cost twice the last one.
                if first or one.new > max(self.settings.train_after, one.old):
                    waiting.append(label)
        self._train(waiting, _ROUGH_TOLERANCE)

    def finish(self) -> None:
        """Trains every SVM on the negatives that it has."""
        self._train([label for label, rows in enumerate(self.positives) if len(rows)], _TOLERANCE)

    def _train(self, labels: Sequence[int], tolerance: float) -> None:
        """Trains the SVMs of some classes, and drops the negatives that are easy now."""
        # One after the other: threads share liblinear's random numbers, and no run would end like another.
        for label in labels:
            self._train_class(label, tolerance)

    def _train_class(self, label: int, tolerance: float) -> None:
        one, positives = self.classes[label], self.positives[label]
        length = positives.shape[1]
        negatives = np.concatenate([*one.negatives, np.empty((0, length), np.float16)])
        one.new = 0
        if not len(negatives):
            return  # one class alone separates nothing; the SVM stays as it is

        one.weights, one.bias = train_svm(positives, negatives, self.settings, tolerance)

        scores = negatives.astype(np.float32) @ one.weights + one.bias
        kept = scores >= self.settings.easy_score
        if kept.sum() > self.most:
            hardest = np.sort(np.argsort(-scores, kind="stable")[: self.most])
            kept = np.isin(np.arange(len(scores)), hardest)
            self.dropped += int((scores >= self.settings.easy_score).sum()) - self.most
        one.negatives = [negatives[kept]]

    def state(self) -> dict[str, Any]:
        """Returns what `load_state` needs to continue: numpy arrays by name."""
        arrays: dict[str, Any] = {"dropped": np.array(self.dropped)}
        for label, one in enumerate(self.classes):
            arrays[f"weights{label}"], arrays[f"bias{label}"] = one.weights, np.array(one.bias)
            arrays[f"new{label}"] = np.array(one.new)
            if one.negatives:
                arrays[f"negatives{label}"] = np.concatenate(one.negatives)
        return arrays

    def load_state(self, arrays: dict[str, Any]) -> None:
        """Continues from a `state`."""
        self.dropped = int(arrays["dropped"])
        for label, one in enumerate(self.classes):
            one.weights, one.bias = arrays[f"weights{label}"], float(arrays[f"bias{label}"])
            one.new = int(arrays[f"new{label}"])
            one.negatives = [arrays[f"negatives{label}"]] if f"negatives{label}" in arrays else []


def train_svm(
    positives: np.ndarray, negatives: np.ndarray, settings: SvmSettings, tolerance: float = _TOLERANCE
) -> tuple[np.ndarray, float]:
    """Trains one SVM on features (p, d) and (m, d), m and p at least 1: float32 (d,) weights, and the bias.

    `tolerance` is liblinear's, at which it stops.
    """
    rows = np.concatenate([positives, negatives]).astype(np.float64)  # liblinear copies other types to this one
    labels = np.repeat([1, -1], [len(positives), len(negatives)])
    svm = LinearSVC(
        C=settings.C,
        loss="hinge",
        class_weight={1: settings.positive_weight, -1: 1.0},
        intercept_scaling=settings.bias,
        tol=tolerance,
        max_iter=10_000,
        random_state=0,
    )
    svm.fit(rows, labels)
    return svm.coef_[0].astype(np.float32), float(svm.intercept_[0])
