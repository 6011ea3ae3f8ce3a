"""How a classifier is trained, and on what: the numbers, each with its unit."""

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

    accelerator: str = "auto"  # "auto", "cpu", "gpu": Lightning's
    devices: int | str = "auto"  # how many, or which: "0,2"
    num_nodes: int = 1
    strategy: str = "auto"  # "auto", "ddp", ...: Lightning's
    precision: str | None = None  # None: bf16-mixed where the hardware is made for it, else 32-true
    compile: bool | None = None  # torch.compile; None: on a GPU, for up to four sizes
    workers: int | None = None  # loader processes; None: one per core, at most 16
    deterministic: bool = False
    validate_every: int = 1  # epochs; recipe.epochs must be a multiple of it

    def __post_init__(self) -> None:
        if self.validate_every < 1:
            raise ValueError(f"trainer.validate_every={self.validate_every}: must be at least 1")
