"""The machine of a training run, and how it is used: settings that change its time, and hardly its outcome."""

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a training run, and how it is used: the `trainer` section. Raises ValueError out of range.

    These settings change the time of a run and hardly its outcome. The images of every step stay the same. Rounding
    depends on precision, devices and compilation. The masks of dropout, and the statistics of BatchNorm, which each
    process computes of its share of a batch, depend on the number of processes (devices x nodes) and on `accumulate`.

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
    # Gigabytes of the disk that decoded images may take, so that later epochs need not decode them again; 0: none are
    # kept. "auto": all, if they fit into a quarter of the memory and of the free disk, or none.
    cache: int | float | str = "auto"
    accumulate: int | str = 1  # parts of every step, one after the other; "auto": as few as fit into a GPU's memory
    deterministic: bool = False
    validate_every: int = 1  # epochs between validations; the last epoch is always validated
    save_every_steps: int | None = None  # steps between checkpoints inside an epoch; None: not by steps
    save_every_minutes: float | None = 10.0  # minutes between them; None: not by the clock
    # Share of the training images that may be unreadable; more stop the run. None: 0.01, but up to 5 of a small set.
    max_unreadable: float | None = None
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

        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.devices != "auto" and not re.fullmatch(r"-1|[1-9]\d*|(\d+,)+\d*", str(self.devices)):
            raise ValueError(
                f"trainer.devices={self.devices}: must be auto, a number from 1, -1 for all, or which: '0,2'"
            )
        if not re.fullmatch(r"auto|[1-9]\d*", str(self.accumulate)):
            raise ValueError(f"trainer.accumulate={self.accumulate}: must be auto or a number from 1")
        if self.cache != "auto" and not (isinstance(self.cache, int | float) and 0 <= 1e9 * self.cache < math.inf):
            raise ValueError(f"trainer.cache={self.cache}: must be auto, or gigabytes from 0")
        for name in ("num_nodes", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)}: must be at least 1")
        for name in ("save_every_steps", "save_every_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"trainer.{name}={value}: must be above 0, or null")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"trainer.workers={self.workers}: must be at least 0")
        if self.max_unreadable is not None and not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"trainer.max_unreadable={self.max_unreadable}: must be from 0 to 1, or null")
