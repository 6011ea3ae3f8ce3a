"""Box regression: moves a window closer to the object in it, from the features of the window, one regressor per class.

Letters: n windows, d values of a feature. Boxes are half-open: x0, y0, x1, y1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from sppnet.runtime.devices import sent_to

# Added to the variances of the targets before they are divided by, as in the paper's release.
_LEAST_VARIANCE = 1e-3

# The largest factor by which a side may grow or shrink. Features unlike those of training could give any number, whose
# exponential overflows.
_MOST_GROWTH = 8.0


@dataclass(frozen=True, eq=False)
class BoxRegressor:
    """A linear map from features to the offsets of a box.

    weights: float32 (d, 4).
    bias: float32 (4,).
    """

    weights: Tensor
    bias: Tensor

    def __call__(self, features: Tensor, windows: Tensor) -> Tensor:
        """Returns the moved windows, float32 (n, 4) in pixels, from features, float32 (n, d), and windows (n, 4)."""
        weights, bias = sent_to(self.weights, features.device), sent_to(self.bias, features.device)
        return apply_offsets(features @ weights + bias, windows.to(features))


def box_offsets(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the offsets that turn windows (n, 4) into boxes (n, 4): float64 (n, 4).

    They are the distances of the centres, divided by the width and height of the window, and the logarithms of the
    ratios of widths and heights. The paper regresses boxes "as in R-CNN" (arXiv:1406.4729v4, §4.2): arXiv:1311.2524,
    Appendix C. All boxes must have a positive area.
    """
    (x, y, width, height), (box_x, box_y, box_width, box_height) = _centers(windows), _centers(boxes)
    return np.stack(
        [(box_x - x) / width, (box_y - y) / height, np.log(box_width / width), np.log(box_height / height)], axis=1
    )


def _centers(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the centres, widths and heights of boxes."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).T
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def apply_offsets(offsets: Tensor, windows: Tensor) -> Tensor:
    """Returns windows (n, 4) moved by offsets (n, 4): the inverse of `box_offsets`, up to a growth of 8."""
    size = windows[:, 2:] - windows[:, :2]
    center = windows[:, :2] + size / 2 + offsets[:, :2] * size
    half = size * offsets[:, 2:].clamp(-np.log(_MOST_GROWTH), np.log(_MOST_GROWTH)).exp() / 2
    return torch.cat([center - half, center + half], dim=1)


def train_regressor(features: np.ndarray, windows: np.ndarray, boxes: np.ndarray, *, ridge: float) -> BoxRegressor:
    """Fits a regressor by ridge regression, whose bias is regularized, too, on whitened offsets, as the release does.

    scikit-learn solves it in the dual where windows are fewer than values of a feature.

    Args:
        features: of the windows, float32 (n, d), scaled to an average norm of about 20.
        windows: (n, 4).
        boxes: (n, 4), the object in each window.
        ridge: weight of the squared weights; 4,000 in the release.

    Raises ValueError without windows.
    """
    if not len(windows):
        raise ValueError("box regression: found no windows to train on")
    offsets = box_offsets(windows, boxes)
    mean = offsets.mean(axis=0)
    variances, axes = np.linalg.eigh((offsets - mean).T @ (offsets - mean) / len(offsets))
    deviations = np.sqrt(variances.clip(0) + _LEAST_VARIANCE)
    whitened = (offsets - mean) @ (axes / deviations) @ axes.T

    ones = np.ones((len(features), 1), np.float32)
    model = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky")
    model.fit(np.concatenate([features, ones], axis=1), whitened.astype(np.float32))

    weights = model.coef_.T.astype(np.float64) @ (axes * deviations) @ axes.T  # back from whitened offsets
    return BoxRegressor(torch.from_numpy(weights[:-1]).float(), torch.from_numpy(weights[-1] + mean).float())
