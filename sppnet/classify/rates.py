"""The learning rate of a step, as pure functions: the highest rate, and schedules by name."""

import difflib
import math
from functools import cache
from typing import Any

from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import cosine_factor
from sppnet.runtime.names import first_line

# Of timm.scheduler; "plateau" is left out because it remembers its state, "rsqrt" because it needs timm's own warm-up.
# The options are those that change a schedule: timm takes all of them for every one. Its cycles are left out because
# the first one lasts for the whole run.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("k_decay", "min_lr"),
    "multistep": ("decay_milestones", "decay_rate"),
    "poly": ("decay_rate", "k_decay", "min_lr"),
    "step": ("decay_epochs", "decay_rate"),
    "tanh": ("min_lr",),
    "wsd": ("decay_epochs", "decay_fn", "min_lr"),
}
SCHEDULES = tuple(_OPTIONS)


def highest_rate(recipe: Recipe) -> float:
    """Returns the highest learning rate of a run.

    It is the recipe's or, with `base_batch_size`, that times `batch_size / base_batch_size`, of which adaptive
    optimizers take the square root: those with "ada" or "lamb" in their names, the rule of timm's train.py.
    """
    if recipe.base_batch_size is None:
        return recipe.learning_rate
    ratio = recipe.batch_size / recipe.base_batch_size
    return recipe.learning_rate * (math.sqrt(ratio) if is_adaptive(recipe.optimizer) else ratio)


def is_adaptive(optimizer: str) -> bool:
    """Whether an optimizer's rate follows the square root of the batch, by the rule of timm's train.py."""
    return any(word in optimizer.lower() for word in ("ada", "lamb"))


def schedule_factor(recipe: Recipe, step: int, total_steps: int) -> float:
    """Returns the factor on the highest rate at a step, from 0: a linear rise, then the recipe's schedule, or a cosine.

    It is for recipes with `warmup_epochs`. Those with `plateau_patience` follow the validation errors instead.
    """
    warmup = _warmup_steps(recipe, total_steps)
    if recipe.schedule is None or step < warmup:
        return cosine_factor(step, warmup, total_steps)
    return timm_factor(
        recipe.schedule,
        step - warmup,
        total_steps - warmup,
        steps_per_epoch=total_steps / recipe.epochs,
        **(recipe.schedule_options or {}),
    )


def _warmup_steps(recipe: Recipe, total_steps: int) -> int:
    assert recipe.warmup_epochs is not None
    return round(recipe.warmup_epochs * total_steps / recipe.epochs)


def timm_factor(name: str, step: int, total_steps: int, *, steps_per_epoch: float, **options: Any) -> float:
    """Returns the factor on the rate at a step, from 0, by a schedule of timm.

    Args:
        name: of SCHEDULES.
        step: after the warm-up.
        total_steps: without the warm-up.
        steps_per_epoch: for options in epochs.
        options: of _OPTIONS, as `timm.scheduler.create_scheduler_v2` has them, in epochs where they are times; `min_lr`
            is a factor on the highest rate. By default "step" divides the rate by 10 after each third of the steps,
            "multistep" after a half and three quarters of them, "wsd" falls during the last fifth, and the power of
            "poly" is 0.9 (arXiv:1606.00915, §4.1).
    """
    in_steps = {key: _in_steps(key, value, steps_per_epoch) for key, value in options.items()}
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in in_steps.items()}
    scheduler = _timm_scheduler(name, max(1, total_steps), tuple(sorted(frozen.items())))
    scheduler.step_update(min(step, total_steps))
    return float(scheduler.optimizer.param_groups[0]["lr"])


def _in_steps(key: str, value: Any, steps_per_epoch: float) -> Any:
    if key == "decay_milestones":
        return [epochs * steps_per_epoch for epochs in value]
    return value * steps_per_epoch if key == "decay_epochs" else value


@cache
def _timm_scheduler(name: str, steps: int, options: tuple[tuple[str, Any], ...]) -> Any:
    """Returns a timm scheduler of a rate of 1, whose values are functions of the step."""
    import timm.scheduler  # timm and torch take seconds
    import torch

    defaults: dict[str, dict[str, Any]] = {
        "step": {"decay_epochs": steps / 3},
        "multistep": {"decay_milestones": (steps / 2, 3 * steps / 4)},
        "poly": {"decay_rate": 0.9},
        "wsd": {"decay_epochs": steps / 5},
    }
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    merged = {**defaults.get(name, {}), **dict(options)}
    if name == "wsd":  # timm takes less than a step for a share, and refuses what is a step too long by rounding
        merged["decay_epochs"] = min(steps, max(1, round(merged["decay_epochs"])))
    scheduler, _ = timm.scheduler.create_scheduler_v2(  # type: ignore[attr-defined]
        optimizer, sched=name, num_epochs=steps, step_on_epochs=False, updates_per_epoch=1, **merged
    )
    return scheduler


def check_schedule(recipe: Recipe) -> None:
    """Raises ValueError for an unknown schedule, and for options that would not change it or are out of range."""
    name, options = recipe.schedule, recipe.schedule_options or {}
    if name is None:
        if options:
            raise ValueError(f"recipe.schedule_options={options}: are of recipe.schedule, which is null")
        return
    if name not in SCHEDULES:
        close = difflib.get_close_matches(name.lower(), SCHEDULES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"recipe.schedule={name}: must be one of {', '.join(SCHEDULES)}, or null{hint}")
    for key in options:
        if key not in _OPTIONS[name]:
            taken = ", ".join(_OPTIONS[name])
            rule = (
                f"must be one of {taken}, which recipe.schedule={name} takes" if taken else f"{name} takes no options"
            )
            raise ValueError(f"recipe.schedule_options.{key}: {rule}")

    try:
        _check_values(recipe)
    except Exception as error:  # options of wrong types fail in any way
        raise ValueError(f"recipe.schedule={name}, recipe.schedule_options={options}: {first_line(error)}") from error


def _check_values(recipe: Recipe) -> None:
    """Raises an error for options with which the factors on the highest rate are not from 0 to 1, or all 0."""
    options = recipe.schedule_options or {}
    milestones = list(options.get("decay_milestones", []))
    if milestones != sorted(milestones):
        raise ValueError("decay_milestones must ascend")
    for key in ("decay_epochs", "k_decay"):
        if key in options and not options[key] > 0:
            raise ValueError(f"{key} must be above 0")
    assert recipe.warmup_epochs is not None
    rest = recipe.epochs - recipe.warmup_epochs
    if recipe.schedule == "wsd" and options.get("decay_epochs", 0) > rest + 1e-9:
        raise ValueError(f"decay_epochs must be at most {rest:g}, the epochs after the warm-up")
    if not 0 <= options.get("min_lr", 0) <= 1:
        raise ValueError("min_lr must be from 0 to 1")
    # A power of a negative rate may be from 0 to 1 at every step that is tried below, and negative at others.
    if recipe.schedule in ("step", "multistep") and not 0 <= options.get("decay_rate", 0) <= 1:
        raise ValueError("decay_rate must be from 0 to 1")

    total = 10 * recipe.epochs
    warmup = _warmup_steps(recipe, total)
    for step in (0, warmup, (warmup + total) // 2, total - 1):
        factor = schedule_factor(recipe, step, total)
        if not 0 <= factor <= 1 + 1e-9:
            raise ValueError(
                f"the rate would be {factor:.3g} times the highest one at times, and must be 0 to 1 times it"
            )
