"""Notices a network that learns nothing: its loss stays at that of guessing."""

from collections.abc import Mapping, Sequence
from typing import Any

from sppnet.classify.recipe import Recipe
from sppnet.runtime.names import counted

_CHANCE_EPOCHS, _CHANCE_STEPS = 3, 200  # after which a network must do better than guessing


def guessing_warning(
    history: Sequence[Mapping[str, Any]], steps: int, recipe: Recipe, loss_of_guessing: float
) -> str | None:
    """Returns a warning if the loss is still that of guessing by the frequency of the classes, else None."""
    epochs, loss = len(history), history[-1]["train_loss"]
    is_early = epochs < max(_CHANCE_EPOCHS, 1 + (recipe.warmup_epochs or 0)) or steps < _CHANCE_STEPS
    # With a single class the loss of guessing is 0, and there is nothing to learn.
    if is_early or not loss > 0.99 * loss_of_guessing > 0:
        return None
    return (
        f"the loss after {counted(epochs, 'epoch')} is {loss:.3f}; guessing gives "
        f"{loss_of_guessing:.3f}: is recipe.learning_rate too low, or too high for recipe.batch_size? do "
        "recipe.initialization and recipe.input_std belong together (paper with 1, fan_in with about 58)?"
    )
