"""Checks and notes on settings that do not fit the data or each other."""

from collections.abc import Sequence

import numpy as np

from sppnet.classify.machine import Machine
from sppnet.classify.rates import highest_rate, is_adaptive
from sppnet.classify.recipe import FEW_STEPS, Recipe, batch_for_enough_steps
from sppnet.runtime.names import counted, printable

_USUAL_RATE = 0.01 / 128  # of momentum SGD for one image of a step: AlexNet's, and that of recipe=fast
_FAR_RATE = 10.0  # times the usual rate, or its part, beyond which the user is told
_IMBALANCED = 10  # times as many images in the largest class as in the smallest, from which on the user is told


def check_validation(recipe: Recipe, machine: Machine) -> None:
    """Raises ValueError if the rate or the end follows the validation error and some epochs have no validation."""
    every = machine.validate_every
    reasons = {"plateau_patience": "the learning rate follows", "stop_patience": "the end of training follows"}
    for key, reason in reasons.items():
        if getattr(recipe, key) is not None and every != 1:
            raise ValueError(
                f"trainer.validate_every={every}: must be 1, because {reason} the validation error "
                f"(recipe.{key}={getattr(recipe, key)})"
            )


def check_batch_size(
    recipe: Recipe, processes: int, training_images: int, validation_images: int, accumulate: int | str = 1
) -> None:
    """Raises ValueError if `processes` cannot share a batch equally, or if there are too few images for a batch.

    Each of them computes its share in `accumulate` equal parts; "auto" finds out how many.
    """
    if recipe.batch_size % processes:
        nearest = max(1, round(recipe.batch_size / processes)) * processes
        raise ValueError(
            f"recipe.batch_size={recipe.batch_size}: must be a multiple of the {processes} devices, such as {nearest}"
        )
    share = recipe.batch_size // processes
    if accumulate != "auto" and share % int(accumulate):
        raise ValueError(
            f"trainer.accumulate={accumulate}: must divide the {share} images of a step on each device "
            f"(recipe.batch_size={recipe.batch_size})"
        )
    if recipe.batch_size > training_images:
        raise ValueError(
            f"recipe.batch_size={recipe.batch_size}: must be at most {training_images}, the number of training images; "
            f"{_smaller_batch(recipe, training_images, processes)}"
        )
    if validation_images < processes:
        raise ValueError(
            f"{validation_images} validation images: must be at least one for each of the {processes} devices"
        )


def few_steps_note(recipe: Recipe, images: int, processes: int = 1) -> str | None:
    """Returns a note with better overrides if an epoch of so many images has fewer than FEW_STEPS steps, else None."""
    steps = images // recipe.batch_size
    if steps >= FEW_STEPS:
        return None

    if batch_for_enough_steps(images, processes) >= recipe.batch_size:
        return None
    return (
        f"an epoch has only {counted(steps, 'step')} ({images:,} images, {recipe.batch_size} at a time), and a network "
        f"may hardly learn; {_smaller_batch(recipe, images, processes)}"
    )


def rate_note(recipe: Recipe) -> str | None:
    """Returns how the highest learning rate follows from the batch, or that it hardly fits it; None if neither."""
    if recipe.base_batch_size is None:
        usual = _USUAL_RATE * recipe.batch_size
        if recipe.optimizer != "sgd" or usual / _FAR_RATE <= recipe.learning_rate <= usual * _FAR_RATE:
            return None
        return (
            f"recipe.learning_rate={recipe.learning_rate:g} hardly fits recipe.batch_size={recipe.batch_size}; usual "
            f"is about {usual:.2g}, that is 0.01 for every 128 images of a step"
        )
    if recipe.batch_size == recipe.base_batch_size:
        return None
    ratio = f"{recipe.batch_size} / {recipe.base_batch_size}"
    factor = f"sqrt({ratio})" if is_adaptive(recipe.optimizer) else ratio
    return (
        f"the highest learning rate is {highest_rate(recipe):.4g}: recipe.learning_rate x {factor}, as "
        f"recipe.batch_size is {recipe.batch_size} and recipe.base_batch_size {recipe.base_batch_size}"
    )


def _smaller_batch(recipe: Recipe, images: int, processes: int) -> str:
    """Proposes a batch with more steps, and a rate to go with it unless that follows."""
    batch = batch_for_enough_steps(images, processes)
    rate = ""
    if recipe.base_batch_size is None:
        rate = f" recipe.learning_rate={recipe.learning_rate * batch / recipe.batch_size:.2g}"
    return f"recipe.batch_size={batch}{rate} would make {counted(images // batch, 'step')}"


def imbalance_note(recipe: Recipe, labels: np.ndarray, classes: Sequence[str]) -> str | None:
    """Returns a note if classes are of very different size and the recipe does nothing about it, else None.

    Args:
        recipe: of the training.
        labels: int64 (n,), of the training images. Classes without images do not count.
        classes: names by label.
    """
    counts = np.bincount(labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    largest, smallest = present[counts[present].argmax()], present[counts[present].argmin()]
    if recipe.balanced or recipe.class_weights or counts[largest] <= _IMBALANCED * counts[smallest]:
        return None
    many, few = (f"{printable(classes[label])} has {counts[label]:,}" for label in (largest, smallest))
    return (
        f"classes are imbalanced: {many} training images, {few}; recipe.balanced=true draws as many of every class in "
        "an epoch, recipe.class_weights=true weighs the loss instead"
    )
