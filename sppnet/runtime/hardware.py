"""The hardware that networks are tested on: devices, loader processes, precision, memory; running work on all of it."""

import builtins
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from sppnet.runtime.cluster import check_one_task
from sppnet.runtime.machine import bf16_is_fast, keep_freed_memory, most_processes, worker_count
from sppnet.runtime.processes import exit_with_parent

_MAX_MEGAPIXELS = 10_000


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The hardware of a test or of a transfer, and how it is used: the `hardware` section. ValueError out of range.

    None means what suits the machine. Training has the same settings in `sppnet.classify.machine.Machine`, with
    Lightning's values:

        hardware.accelerator           trainer.accelerator   the same values
        hardware.devices: 2            trainer.devices: 2    processes, one per GPU
        hardware.devices: null         trainer.devices: "auto"
        hardware.precision: "float32"  trainer.precision: "32-true"
        hardware.precision: "bf16"     trainer.precision: "bf16-mixed"
    """

    accelerator: str = "auto"  # "auto", "cpu", "gpu"
    devices: int | None = None  # processes that share the images; None: every GPU, or one process on the CPU
    workers: int | None = None  # loader processes per device; None: see `loaders`
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
    def loaders(self) -> int:
        """The loader processes of each device: with a GPU one per core, at most 16; on the CPU 0.

        On the CPU, loader processes would take the cores from the threads that run the network, which wait for each
        other. Without them images are loaded between forward passes, in threads.
        """
        if self.workers is None and self.device == "cpu":
            return 0
        return worker_count(self.workers, self.processes)

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of convolutions, None for float32."""
        bf16 = self.precision == "bf16" if self.precision else bf16_is_fast(self.device)
        return torch.bfloat16 if bf16 else None

    @property
    def pixels(self) -> int:
        """The input pixels of one forward pass."""
        return round(1e6 * (self.megapixels or (32 if self.device == "cuda" else 2)))


def run_on_devices(work: Callable[..., None], arguments: tuple[Any, ...], hardware: Hardware) -> None:
    """Calls work(rank, *arguments) once per device: in this process if there is one device, else in one process each.

    Raises what `work` raises, if it is an OSError or ValueError, ChildProcessError if a process dies, and ValueError if
    SLURM has started this process several times.

    Args:
        work: a function at the top level of a module. It calls `prepare_device` first.
        arguments: are pickled for other processes; tensors are shared.
        hardware: the devices.
    """
    check_one_task()
    if hardware.processes == 1:
        work(0, *arguments)
        return

    try:
        torch.multiprocessing.spawn(work, arguments, nprocs=hardware.processes)
    except ProcessRaisedException as error:
        # The text of a traceback, whose last line is the error.
        name, _, reason = str(error).strip().splitlines()[-1].partition(": ")
        kind = _error_kind(name)
        if not issubclass(kind, (OSError, ValueError)):
            raise
        raise kind(reason) from error
    except ProcessExitedException as error:
        raise ChildProcessError(
            f"a process that runs the network was killed ({error}), perhaps for lack of memory: use fewer "
            "hardware.devices, hardware.workers or hardware.megapixels"
        ) from error


def prepare_device(rank: int, hardware: Hardware) -> torch.device:
    """Returns the device of a process of `run_on_devices`, and sets the process up for it.

    A spawned process exits with its parent. Processes on the CPU share its cores.
    """
    if hardware.processes > 1:
        exit_with_parent()
    if hardware.device == "cuda":
        return torch.device("cuda", rank)
    keep_freed_memory()
    torch.set_num_threads(max(1, torch.get_num_threads() // hardware.processes))
    return torch.device("cpu")


def _error_kind(name: str) -> type:
    """Returns the class of an error from its name in a traceback; RuntimeError if there is no such class."""
    try:
        kind = pkgutil.resolve_name(name) if "." in name else getattr(builtins, name)
    except (ImportError, AttributeError, ValueError):
        return RuntimeError
    return kind if isinstance(kind, type) else RuntimeError
