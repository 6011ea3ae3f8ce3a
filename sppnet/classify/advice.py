"""Checks and notes on settings that do not fit the data or each other."""

from collections.abc import Sequence

import numpy as np

from sppnet.classify.machine import Machine
from sppnet.classify.rates import highest_rate, is_adaptive
from sppnet.classify.recipe import Recipe
from sppnet.runtime.names import printable

_IMBALANCED = 10  # times as many images in the largest class as in the smallest, from which on the user is told
_FEW_STEPS = 20  # with fewer steps in an epoch, a network hardly learns in the usual number of epochs


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
        raise ValueError(f"recipe.batch_size={recipe.batch_size}: must be a multiple of the {processes} devices")
    share = recipe.batch_size // processes
    if accumulate != "auto" and share % int(accumulate):
        raise ValueError(
            f"trainer.accumulate={accumulate}: must divide the {share} images of a step on each device "
            f"(recipe.batch_size={recipe.batch_size})"
        )
    if recipe.batch_size > training_images:
        raise ValueError(
            f"recipe.batch_size={recipe.batch_size}: must be at most {training_images}, the number of training images; "
            f"{_smaller_batch(recipe, training_images, processes)} would make enough steps"
        )
    if validation_images < processes:
        raise ValueError(
            f"{validation_images} validation images: must be at least one for each of the {processes} devices"
        )


def few_steps_note(recipe: Recipe, images: int, processes: int = 1) -> str | None:
    """Returns a note with better overrides if an epoch of so many images has fewer than _FEW_STEPS steps, else None."""
    steps = images // recipe.batch_size
    if steps >= _FEW_STEPS:
        return None

    batch = _batch_for_enough_steps(images, processes)
    if batch >= recipe.batch_size:
        return None
    return (
        f"an epoch has only {steps} steps ({images:,} images, {recipe.batch_size} at a time), and a network may hardly "
        f"learn; {_smaller_batch(recipe, images, processes)} would make it {images // batch}"
    )


def rate_note(recipe: Recipe) -> str | None:
    """Returns the highest learning rate and how it follows from the batch, None if it is as the recipe has it."""
    if recipe.base_batch_size is None:
        return None
    ratio = f"{recipe.batch_size} / {recipe.base_batch_size}"
    factor = f"sqrt({ratio})" if is_adaptive(recipe.optimizer) else ratio
    return (
        f"the highest learning rate is {highest_rate(recipe):.4g} = recipe.learning_rate x {factor}, the batch and "
        "recipe.base_batch_size"
    )


def _batch_for_enough_steps(images: int, processes: int) -> int:
    """Returns the largest batch that is a power of two per process and makes enough steps."""
    share = images // _FEW_STEPS // processes
    return processes * 2 ** max(0, share.bit_length() - 1)


def _smaller_batch(recipe: Recipe, images: int, processes: int) -> str:
    """Returns overrides for a batch that makes enough steps, with a rate to go with it unless that follows."""
    batch = _batch_for_enough_steps(images, processes)
    if recipe.base_batch_size is not None:
        return f"recipe.batch_size={batch}"
    return f"recipe.batch_size={batch} recipe.learning_rate={recipe.learning_rate * batch / recipe.batch_size:.2g}"


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
