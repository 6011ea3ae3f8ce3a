"""Settings of training: those that change the outcome (Recipe), and the machine it runs on (Machine)."""

import math
import re
from dataclasses import dataclass, field, fields

_MOST_EPOCHS = 100_000  # every epoch has an entry in each checkpoint
_FEW_STEPS = 20  # with fewer steps in an epoch, a network hardly learns in the usual number of epochs


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of training that change its outcome, besides sizes and network.

    Exactly one of `plateau_patience` and `warmup_epochs` is set: it chooses the schedule.

    Raises ValueError for values out of range and for numbers that are not finite. `dropout`, `input_mean` and
    `input_std` only have to be finite here: `sppnet.network.check_settings`, which TrainingPlan calls, checks the rest.
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
    dropout: float = 0.5  # ratio after fc6 and fc7
    color: bool = True  # AlexNet's PCA lighting
    initialization: str = "paper"  # "paper" or "fan_in"
    input_mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])  # red, green, blue of 0..255
    input_std: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])

    def __post_init__(self) -> None:
        self._check_finite()
        self._check_ranges()
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

    def _check_schedule(self) -> None:
        if (self.plateau_patience is None) == (self.warmup_epochs is None):
            raise ValueError(
                f"recipe.plateau_patience={self.plateau_patience}, recipe.warmup_epochs={self.warmup_epochs}: "
                "set one of them (it chooses the schedule) and make the other null"
            )
        if self.plateau_patience is not None and self.plateau_patience < 1:
            raise ValueError(f"recipe.plateau_patience={self.plateau_patience}: must be at least 1")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"recipe.warmup_epochs={self.warmup_epochs}: must be at least 0 and below recipe.epochs={self.epochs}"
            )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a training run, and how it is used: the `trainer` section. Raises ValueError out of range.

    These settings change the time of a run and hardly its outcome. The images of every step stay the same. Rounding
    depends on precision, devices and compilation. The masks of dropout, and the statistics of BatchNorm, which each
    process computes of its share of a batch, depend on the number of processes (devices x nodes).

    Testing has the same settings in `sppnet.runtime.hardware.Hardware`, with its own values:

        trainer.accelerator              hardware.accelerator   the same values
        trainer.devices: "auto" or -1    hardware.devices: null (every GPU, or one process on the CPU)
        trainer.devices: 2               hardware.devices: 2    processes, one per GPU; "0,2" chooses GPUs for training
        trainer.precision: "32-true"     hardware.precision: "float32"
        trainer.precision: "bf16-mixed"  hardware.precision: "bf16"
    """

    accelerator: str = "auto"  # "auto", "cpu", "gpu"
    devices: int | str = "auto"  # "auto", a number, -1 for all GPUs, or which GPUs: "0,2"
    num_nodes: int = 1
    strategy: str = "auto"  # "auto", "ddp"
    # As Lightning names it: "32-true" or "bf16-mixed". None: that of the checkpoint when resuming, otherwise bf16-mixed
    # if the hardware multiplies bf16.
    precision: str | None = None
    compile: bool | None = None  # torch.compile; None: on a GPU, for up to four sizes
    workers: int | None = None  # loader processes per device; None: the cores shared among the devices, at most 16
    deterministic: bool = False
    validate_every: int = 1  # epochs between validations; the last epoch is always validated
    save_every_steps: int | None = None  # steps between checkpoints inside an epoch; None: not by steps
    save_every_minutes: float | None = 10.0  # minutes between them; None: not by the clock
    max_unreadable: float = 0.01  # share of the training images that may be unreadable; more stop the run
    allow_changed_data: bool = False  # whether to resume although images or labels are not those of the checkpoint

    def __post_init__(self) -> None:
        choices = {
            "accelerator": ("auto", "cpu", "gpu"),
            "strategy": ("auto", "ddp"),
            "precision": ("32-true", "bf16-mixed", None),
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
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"trainer.{name}={value}: must be above 0, or null")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"trainer.workers={self.workers}: must be at least 0")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"trainer.max_unreadable={self.max_unreadable}: must be from 0 to 1")


def default_warmup(epochs: object) -> float:
    """Returns the default of `warmup_epochs` for a cosine: 3, or a fifth of fewer than 15 epochs."""
    # Anything but a number of epochs is refused later, by Recipe.
    return min(3, epochs / 5) if isinstance(epochs, int) and 0 < epochs < 15 else 3


def check_validation(recipe: Recipe, machine: Machine) -> None:
    """Raises ValueError if the schedule follows the validation error and some epochs have no validation."""
    every = machine.validate_every
    if recipe.plateau_patience is not None and every != 1:
        raise ValueError(
            f"trainer.validate_every={every}: must be 1, because the learning rate follows the validation error "
            f"(recipe.plateau_patience={recipe.plateau_patience})"
        )


def check_batch_size(recipe: Recipe, processes: int, training_images: int, validation_images: int) -> None:
    """Raises ValueError if `processes` cannot share a batch equally, or if there are too few images for a batch."""
    if recipe.batch_size % processes:
        raise ValueError(f"recipe.batch_size={recipe.batch_size}: must be a multiple of the {processes} devices")
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


def _batch_for_enough_steps(images: int, processes: int) -> int:
    """Returns the largest batch that is a power of two per process and makes enough steps."""
    share = images // _FEW_STEPS // processes
    return processes * 2 ** max(0, share.bit_length() - 1)


def _smaller_batch(recipe: Recipe, images: int, processes: int) -> str:
    """Returns overrides for a batch that makes enough steps, with a rate to go with it."""
    batch = _batch_for_enough_steps(images, processes)
    return f"recipe.batch_size={batch} recipe.learning_rate={recipe.learning_rate * batch / recipe.batch_size:.2g}"
