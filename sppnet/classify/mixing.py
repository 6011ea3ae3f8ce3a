"""The loss of training: of mixed images, with smoothed labels and weights of the classes.

Letters: N images of a batch, C classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from sppnet.classify.recipe import Recipe


class TrainingLoss(nn.Module):
    """Mixes the images of a batch, as Mixup and CutMix do, and compares scores with the labels.

    The loss of a batch is the mean over its images of -sum over the classes c of w_c * t_c * ln p_c. t are the labels:
    mixed, then smoothed. w are 1, or `class_weights`.

    Args:
        recipe: mixup, cutmix, label_smoothing, class_weights and balanced decide.
        labels: int64 (n,), those of all training images.
        classes: their number.
    """

    weights: Tensor | None  # float32 (C,)

    def __init__(self, recipe: Recipe, labels: np.ndarray, classes: int) -> None:
        super().__init__()
        weights = class_weights(labels, classes).float() if recipe.class_weights else None
        self.register_buffer("weights", weights, persistent=False)
        self.label_smoothing = recipe.label_smoothing

        mixers = {v2.MixUp: recipe.mixup, v2.CutMix: recipe.cutmix}
        self.mixers = [kind(alpha=alpha, num_classes=classes) for kind, alpha in mixers.items() if alpha]

        counts = np.bincount(labels, minlength=classes)
        self.frequencies = (counts > 0) / (counts > 0).sum() if recipe.balanced else counts / len(labels)

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes each image of a batch with the one before it, as torchvision.transforms.v2 does.

        Draws from torch's generator of the CPU, so the host does not wait for the device. With Mixup and CutMix each
        batch takes one of them at random.

        Args:
            images: float (N, 3, h, w) in channels_last.
            labels: int64 (N,).

        Returns the images, and labels as float (N, C), whose rows sum to 1. Without mixing, both unchanged.
        """
        if not self.mixers:
            return images, labels
        chosen = int(torch.randint(len(self.mixers), ())) if len(self.mixers) > 1 else 0
        images, labels = self.mixers[chosen](images, labels)
        # MixUp returns another memory format, for which a compiled network would be compiled again.
        return images.contiguous(memory_format=torch.channels_last), labels

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss (): of scores (N, C) and labels int64 (N,) or float (N, C)."""
        smoothing = self.label_smoothing
        if self.weights is None:
            return F.cross_entropy(scores, labels, label_smoothing=smoothing)
        # Not torch's own mean, which divides by the sum of the weights of the batch unless labels are mixed.
        return F.cross_entropy(scores, labels, self.weights, label_smoothing=smoothing, reduction="sum") / len(labels)

    def of_guessing(self) -> float:
        """Returns the lowest mean loss of a network that gives all images the same scores.

        Without weights it is the entropy of the smoothed frequencies of the classes, ln(C) for classes of equal size.
        Mixing does not change it.
        """
        targets = (1 - self.label_smoothing) * self.frequencies + self.label_smoothing / len(self.frequencies)
        weighted = targets if self.weights is None else targets * self.weights.double().cpu().numpy()
        shares = weighted[weighted > 0]
        return float(-(shares * np.log(shares / shares.sum())).sum())


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Returns the weights of classes in the loss: float64 (classes,), in proportion to 1 / images of the class.

    The weight of a class with m of n training images is n / (m * K), where K classes have images. So the mean over the
    training images is 1. A class without images weighs 0.
    """
    counts = torch.from_numpy(np.bincount(labels, minlength=classes))
    weights = len(labels) / (counts * (counts > 0).sum())
    return torch.where(counts > 0, weights, 0.0)
