"""How a classifier is trained, and on what: the numbers, each with its unit."""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about training that changes its outcome, sizes and network aside.

    Exactly one of `plateau_patience` and `warmup_epochs` is set: it chooses the schedule.
    Raises ValueError for values out of range.
    """

    epochs: int
    batch_size: int  # images per step, all devices together
    learning_rate: float
    momentum: float
    weight_decay: float  # of weights; biases have none
    plateau_patience: int | None = None  # epochs without a lower validation error before the rate drops by 10
    plateau_drops: int = 2  # at most
    warmup_epochs: float | None = None  # of linear rise, before half a cosine to 0
    label_smoothing: float = 0.0  # 0..1
    clip_gradient_norm: float | None = None  # of all gradients together
    dropout: float = 0.5  # ratio after fc6 and fc7
    color: bool = True  # AlexNet's PCA lighting
    initialization: str = "paper"  # "paper" or "fan_in"
    input_mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])  # red, green, blue of 0..255
    input_std: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "momentum": 0, "weight_decay": 0, "plateau_drops": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"recipe.{name}={getattr(self, name)}: must be at least {bound}")
        if not self.learning_rate > 0:
            raise ValueError(f"recipe.learning_rate={self.learning_rate}: must be above 0")
        if not self.momentum < 1:
            raise ValueError(f"recipe.momentum={self.momentum}: must be below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"recipe.label_smoothing={self.label_smoothing}: must be at least 0 and below 1")
        if self.clip_gradient_norm is not None and not self.clip_gradient_norm > 0:
            raise ValueError(f"recipe.clip_gradient_norm={self.clip_gradient_norm}: must be above 0, or null")
        if self.initialization not in ("paper", "fan_in"):
            raise ValueError(f"recipe.initialization={self.initialization}: must be one of paper, fan_in")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"recipe.dropout={self.dropout}: must be at least 0 and below 1")
        if len(self.input_mean) != 3 or len(self.input_std) != 3 or not min(self.input_std) > 0:
            raise ValueError(
                f"recipe.input_mean={self.input_mean}, recipe.input_std={self.input_std}: must be three numbers each, "
                "input_std above 0"
            )
        if (self.plateau_patience is None) == (self.warmup_epochs is None):
            raise ValueError(
                f"recipe.plateau_patience={self.plateau_patience}, recipe.warmup_epochs={self.warmup_epochs}: "
                "set one of them (it chooses the schedule) and make the other null"
            )
        if self.plateau_patience is not None and self.plateau_patience < 1:
            raise ValueError(f"recipe.plateau_patience={self.plateau_patience}: must be at least 1")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"recipe.warmup_epochs={self.warmup_epochs}: must be at least 0 and below {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run is trained on. Nothing here is meant to change its outcome, beyond the rounding of the precision."""

    accelerator: str = "auto"  # "auto", "cpu", "gpu"
    devices: int | str = "auto"  # how many, or which: "0,2"
    num_nodes: int = 1
    strategy: str = "auto"  # "auto", "ddp"
    precision: str | None = None  # "32-true", "bf16-mixed", "16-mixed"; None: bf16-mixed where hardware is made for it
    compile: bool | None = None  # torch.compile; None: on a GPU, for up to four sizes
    workers: int | None = None  # loader processes; None: one per core, at most 16
    deterministic: bool = False
    validate_every: int = 1  # epochs; recipe.epochs must be a multiple of it
    save_every_steps: int | None = None  # between checkpoints inside an epoch
    save_every_minutes: float | None = 10.0  # the same by the clock
    max_unreadable: float = 0.01  # share of the training images that may be skipped because they cannot be read
    allow_changed_data: bool = False  # whether to go on where names or labels are no longer those of the checkpoint

    def __post_init__(self) -> None:
        choices = {
            "accelerator": ("auto", "cpu", "gpu"),
            "strategy": ("auto", "ddp"),
            "precision": ("32-true", "bf16-mixed", "16-mixed", None),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                words = ", ".join(filter(None, allowed)) + (", or null" if None in allowed else "")
                raise ValueError(f"trainer.{name}={getattr(self, name)}: must be one of {words}")
        if self.devices != "auto" and not re.fullmatch(r"-1|[1-9]\d*|(\d+,)+\d*", str(self.devices)):
            raise ValueError(
                f"trainer.devices={self.devices}: must be auto, a number from 1, -1 for all, or which: '0,2'"
            )
        if self.num_nodes < 1:
            raise ValueError(f"trainer.num_nodes={self.num_nodes}: must be at least 1")
        if self.validate_every < 1:
            raise ValueError(f"trainer.validate_every={self.validate_every}: must be at least 1")
        for name in ("save_every_steps", "save_every_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"trainer.{name}={value}: must be above 0, or null")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"trainer.workers={self.workers}: must be at least 0")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"trainer.max_unreadable={self.max_unreadable}: must be from 0 to 1")


def check_validation(recipe: Recipe, machine: Machine) -> None:
    """ValueError where validations would not fall where the schedule needs them."""
    every = machine.validate_every
    if recipe.epochs % every:
        raise ValueError(
            f"trainer.validate_every={every}: recipe.epochs={recipe.epochs} must be a multiple of it, so that the last "
            "epoch is validated"
        )
    if recipe.plateau_patience is not None and every != 1:
        raise ValueError(
            f"trainer.validate_every={every}: must be 1, because the learning rate follows the validation error "
            f"(recipe.plateau_patience={recipe.plateau_patience})"
        )
