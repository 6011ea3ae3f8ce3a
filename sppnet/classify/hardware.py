"""The hardware of an evaluation: devices, loader processes, precision and memory."""

import os
from dataclasses import dataclass

import torch

from sppnet.runtime.machine import bf16_is_fast, most_processes

_MAX_MEGAPIXELS = 10_000


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The hardware of an evaluation, and how it is used: the `hardware` section. Raises ValueError out of range.

    None means what suits the machine. Training has the same settings in `sppnet.classify.recipe.Machine`, with
    Lightning's values:

        hardware.accelerator           trainer.accelerator   the same values
        hardware.devices: 2            trainer.devices: 2    processes, one per GPU
        hardware.devices: null         trainer.devices: "auto"
        hardware.precision: "float32"  trainer.precision: "32-true"
        hardware.precision: "bf16"     trainer.precision: "bf16-mixed"
    """

    accelerator: str = "auto"  # "auto", "cpu", "gpu"
    devices: int | None = None  # processes that share the images; None: every GPU, or one process on the CPU
    workers: int | None = None  # loader processes per device; None: one per core, at most 16
    precision: str | None = None  # "bf16" or "float32"; None: bf16 if the hardware multiplies bf16
    megapixels: float | None = None  # of one forward pass; None: 32 on a GPU, 2 on the CPU

    def __post_init__(self) -> None:
        if self.accelerator not in ("auto", "cpu", "gpu"):
            raise ValueError(f"hardware.accelerator={self.accelerator}: must be one of auto, cpu, gpu")
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("hardware.accelerator=gpu: torch finds no GPU on this machine")
        if self.precision not in (None, "bf16", "float32"):
            raise ValueError(f"hardware.precision={self.precision}: must be bf16, float32 or null")

        most = torch.cuda.device_count() if self.device == "cuda" else os.cpu_count() or 1
        if self.devices is not None and not 1 <= self.devices <= most:
            raise ValueError(f"hardware.devices={self.devices}: must be 1 to {most} on this machine ({self.device})")
        if self.workers is not None and not 0 <= self.workers <= most_processes():
            raise ValueError(f"hardware.workers={self.workers}: must be from 0 to {most_processes()} on this machine")
        if self.megapixels is not None and not 0 < self.megapixels <= _MAX_MEGAPIXELS:
            raise ValueError(f"hardware.megapixels={self.megapixels}: must be above 0, at most {_MAX_MEGAPIXELS:,}")

    @property
    def device(self) -> str:
        """The type of the devices, "cuda" or "cpu"."""
        return "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    @property
    def processes(self) -> int:
        """The number of processes, one per device."""
        return self.devices or (torch.cuda.device_count() if self.device == "cuda" else 1)

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of convolutions, None for float32."""
        bf16 = self.precision == "bf16" if self.precision else bf16_is_fast(self.device)
        return torch.bfloat16 if bf16 else None

    @property
    def pixels(self) -> int:
        """The input pixels of one forward pass."""
        return round(1e6 * (self.megapixels or (32 if self.device == "cuda" else 2)))
