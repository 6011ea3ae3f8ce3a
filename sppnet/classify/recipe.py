"""The settings of training that change its outcome."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

_MOST_EPOCHS = 100_000  # every epoch has an entry in each checkpoint
FEW_STEPS = 20  # with fewer steps in an epoch, a network hardly learns in the usual number of epochs
_LEAST_BATCH = 4  # with fewer images in a step, its gradient says little


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of training that change its outcome, besides sizes and network.

    Exactly one of `plateau_patience` and `warmup_epochs` is set: it chooses the schedule.

    Raises ValueError for values out of range and for numbers that are not finite. `dropout`, `input_mean` and
    `input_std` only have to be finite here: `sppnet.network.check_settings`, which TrainingPlan calls, checks the rest.
    Optimizers and schedules of timm are checked in `optimizers.check_optimizer` and `rates.check_schedule`.
    """

    epochs: int
    batch_size: int  # images per step, all devices together
    learning_rate: float  # the highest one
    momentum: float
    weight_decay: float  # of weights; biases have none
    plateau_patience: int | None = None  # epochs without a lower validation error before the rate is divided by 10
    plateau_drops: int = 2  # how often the rate is divided at most
    warmup_epochs: float | None = None  # of linear rise, before half a cosine to 0
    label_smoothing: float = 0.0  # 0..1
    clip_gradient_norm: float | None = None  # the largest norm of all gradients together
    dropout: float = 0.5  # ratio, of the inputs of fc7 and fc8
    color: bool = True  # AlexNet's PCA lighting
    initialization: str = "paper"  # "paper" or "fan_in"
    # Red, green, blue of 0..255. None: what a timm model was made for, ImageNet's for the other backbones.
    input_mean: list[float] | None = field(default_factory=lambda: [123.675, 116.28, 103.53])
    input_std: list[float] | None = field(default_factory=lambda: [1.0, 1.0, 1.0])

    # The update of the weights.
    optimizer: str = "sgd"  # "sgd", torch's, or another name of timm.optim.list_optimizers()
    optimizer_options: dict[str, Any] | None = None  # of that optimizer, such as {"betas": [0.9, 0.95]}
    schedule: str | None = None  # of rates.SCHEDULES, after `warmup_epochs`; None: the plateaus or the cosine above
    schedule_options: dict[str, Any] | None = None  # of that schedule, such as {"decay_epochs": 10}
    base_batch_size: int | None = None  # the batch that `learning_rate` is for; None: `batch_size`
    layer_decay: float | None = None  # factor on the rate from each layer to the one before it; None: 1
    backbone_rate: float = 1.0  # factor on the rates of the backbone
    full_rate_inputs: int | None = (
        None  # of fully connected layers with the whole rate; wider ones have less; None: all
    )
    frozen_epochs: int = 0  # first epochs in which the backbone is not trained
    ema_decay: float | None = None  # of the moving average of the weights that is validated and used; None: no average
    stop_patience: int | None = None  # epochs without a lower validation error that end the run; None: all epochs

    # The images.
    mirror: bool = True  # whether half of the images are mirrored left to right
    crop_area: list[float] | None = None  # smallest and largest share of RandomResizedCrop; None: the five positions
    crop_aspect: list[float] = field(default_factory=lambda: [0.75, 1.3333])  # width / height of those crops
    rand_augment: int | None = None  # magnitude of RandAugment, 0..30
    trivial_augment: bool = False
    erasing: float = 0.0  # probability of RandomErasing
    mixup: float = 0.0  # alpha of Mixup; 0: off
    cutmix: float = 0.0  # alpha of CutMix; 0: off; with mixup each batch takes one of them
    class_weights: bool = False  # whether the loss weighs classes by 1 / frequency
    balanced: bool = False  # whether epochs draw as many images of every class

    def __post_init__(self) -> None:
        self._check_finite()
        self._check_ranges()
        self._check_update()
        self._check_images()
        self._check_schedule()

    def _check_finite(self) -> None:
        for name in (entry.name for entry in fields(self)):
            value = getattr(self, name)
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise ValueError(f"recipe.{name}={value}: must be finite")

    def _check_ranges(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "momentum": 0, "weight_decay": 0, "plateau_drops": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"recipe.{name}={getattr(self, name)}: must be at least {bound}")

        if self.epochs > _MOST_EPOCHS:
            raise ValueError(f"recipe.epochs={self.epochs}: must be at most {_MOST_EPOCHS}")
        if not self.learning_rate > 0:
            raise ValueError(f"recipe.learning_rate={self.learning_rate}: must be above 0")
        if not self.momentum < 1:
            raise ValueError(f"recipe.momentum={self.momentum}: must be below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"recipe.label_smoothing={self.label_smoothing}: must be at least 0 and below 1")
        if self.clip_gradient_norm is not None and not self.clip_gradient_norm > 0:
            raise ValueError(f"recipe.clip_gradient_norm={self.clip_gradient_norm}: must be above 0, or null")
        # SPPNet also takes "none", which leaves the weights as they are built: for weights from a file, not to train.
        if self.initialization not in ("paper", "fan_in"):
            raise ValueError(f"recipe.initialization={self.initialization}: must be one of paper, fan_in")

    def _check_update(self) -> None:
        for name in ("base_batch_size", "full_rate_inputs", "stop_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"recipe.{name}={value}: must be at least 1, or null")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"recipe.layer_decay={self.layer_decay}: must be above 0 and at most 1, or null")
        if not self.backbone_rate > 0:
            raise ValueError(f"recipe.backbone_rate={self.backbone_rate}: must be above 0")
        if not 0 <= self.frozen_epochs <= self.epochs:
            raise ValueError(
                f"recipe.frozen_epochs={self.frozen_epochs}: must be from 0 to recipe.epochs={self.epochs}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"recipe.ema_decay={self.ema_decay}: must be above 0 and below 1, or null")

    def _check_images(self) -> None:
        for name, least, most in (("crop_area", 0.0001, 1), ("crop_aspect", 0.01, 100)):
            pair = getattr(self, name)
            if pair is not None and (len(pair) != 2 or not least <= pair[0] <= pair[1] <= most):
                raise ValueError(f"recipe.{name}={pair}: must be [smallest, largest], from {least} to {most}")
        if self.rand_augment is not None and not 0 <= self.rand_augment <= 30:
            raise ValueError(f"recipe.rand_augment={self.rand_augment}: must be from 0 to 30, or null")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"recipe.erasing={self.erasing}: must be from 0 to 1")
        for name in ("mixup", "cutmix"):
            if (alpha := getattr(self, name)) and not 0.001 <= alpha <= 1000:
                raise ValueError(f"recipe.{name}={alpha}: must be 0, or from 0.001 to 1000")
        for first, second in (("rand_augment", "trivial_augment"), ("class_weights", "balanced")):
            if getattr(self, first) not in (None, False) and getattr(self, second):
                raise ValueError(
                    f"recipe.{first}={getattr(self, first)}, recipe.{second}=True: set one of them, not both"
                )

    def _check_schedule(self) -> None:
        if (self.plateau_patience is None) == (self.warmup_epochs is None):
            raise ValueError(
                f"recipe.plateau_patience={self.plateau_patience}, recipe.warmup_epochs={self.warmup_epochs}: "
                "set one of them (it chooses the schedule) and make the other null"
            )
        if self.plateau_patience is not None and self.schedule is not None:
            raise ValueError(
                f"recipe.schedule={self.schedule}, recipe.plateau_patience={self.plateau_patience}: set one of them; a "
                "schedule of timm needs recipe.plateau_patience=null and recipe.warmup_epochs (0 for no warm-up)"
            )
        if self.plateau_patience is not None and self.plateau_patience < 1:
            raise ValueError(f"recipe.plateau_patience={self.plateau_patience}: must be at least 1")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"recipe.warmup_epochs={self.warmup_epochs}: must be at least 0 and below recipe.epochs={self.epochs}"
            )


def default_warmup(epochs: object) -> float:
    """Returns the default of `warmup_epochs` for a cosine: 3, or a fifth of fewer than 15 epochs."""
    # Anything but a number of epochs is refused later, by Recipe.
    return min(3, epochs / 5) if isinstance(epochs, int) and 0 < epochs < 15 else 3


def default_frozen(epochs: object) -> int:
    """Returns the default of `frozen_epochs` for pretrained weights: 2, or a fifth of fewer than 10 epochs."""
    return min(2, epochs // 5) if isinstance(epochs, int) and epochs > 0 else 2


def batch_for_enough_steps(images: int, processes: int = 1) -> int:
    """Returns the largest batch, a power of two for each process, that makes FEW_STEPS steps of so many images.

    Of fewer than 80 images it makes fewer steps: it is at least 4, or as many as there are images or processes.
    """
    share = max(images // FEW_STEPS, min(_LEAST_BATCH, images)) // processes
    return processes * 2 ** max(0, share.bit_length() - 1)


def recipe_for(images: int, has_weights: bool, processes: int = 1) -> tuple[str, dict[str, int]]:
    """Returns the name of the recipe for so many training images, and values that depend on their number.

    Networks with trained weights are fine-tuned. Small data sets need more epochs, and a smaller batch for enough steps
    in each: at most 32 images, as many of them for every process.
    """
    if images > 50_000 and not has_weights:
        return "fast", {}
    batch = min(batch_for_enough_steps(32 * FEW_STEPS, processes), batch_for_enough_steps(images, processes))
    if has_weights:
        return "finetune", {"batch_size": batch}
    epochs = next(epochs for most, epochs in ((1000, 100), (5000, 60), (math.inf, 30)) if images <= most)
    return "small", {"batch_size": batch, "epochs": epochs}
