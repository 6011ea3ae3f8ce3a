"""What training and testing ask of the machine: how many loader processes, whether bf16 pays, which GPU is free."""

import ctypes
import os
import tempfile
from functools import cache
from pathlib import Path

import torch

# Of torch.cpu.get_capabilities(): instructions with which training was measured to be faster in bf16.
BF16_FLAGS = ("amx_bf16", "avx512_bf16")


def worker_count(requested: int | None, processes: int = 1) -> int:
    """Loader processes for each of `processes` on this machine: `requested`, or its share of the cores, at most 16.

    Raises ValueError for numbers below 0, and for more than a machine could start without running out of memory.
    """
    if requested is None:
        return min(16, max(1, core_count() // max(1, processes)))
    if requested < 0:
        raise ValueError(f"workers={requested}: must be at least 0")
    if requested > most_processes():
        raise ValueError(
            f"workers={requested}: must be at most {most_processes()} on a machine of {core_count()} cores"
        )
    return requested


def most_processes() -> int:
    """Processes of one kind that are worth starting here: four per core, or 16, because some wait for slow disks."""
    return max(16, 4 * core_count())


def processes_here(accelerator: str, devices: int | str) -> int:
    """How many processes a run has on this machine: one for each device.

    Args:
        accelerator: "auto", "cpu" or "gpu".
        devices: "auto", a number from 1, -1 for all, or which: "0,2".

    Raises ValueError for devices that this machine does not have.
    """
    gpus = torch.cuda.device_count() if accelerator != "cpu" and torch.cuda.is_available() else 0
    words = str(devices)
    if gpus == 0:
        if words != "auto" and not words.isdigit():
            raise ValueError(f"trainer.devices={devices}: must be auto or a number from 1 on a CPU")
        if words != "auto" and int(words) > most_processes():
            raise ValueError(f"trainer.devices={devices}: must be at most {most_processes()} processes on this CPU")
        return 1 if words == "auto" else int(words)
    if "," in words:
        chosen = {int(word) for word in words.split(",") if word}
        if max(chosen) >= gpus:
            raise ValueError(f"trainer.devices={devices}: must be from 0 to {gpus - 1}, the GPUs of this machine")
        return len(chosen)
    if words in ("auto", "-1"):
        return gpus
    if int(words) > gpus:
        raise ValueError(f"trainer.devices={devices}: must be at most {gpus}, the GPUs of this machine")
    return int(words)


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_machine() -> str | None:
    """A note where other programs already keep all cores of this machine busy, else None."""
    cores = os.cpu_count() or 1  # of the whole machine, as the load is
    load = os.getloadavg()[0]
    if load <= cores:
        return None
    return f"this machine is busy (load {load:.1f} on {cores} cores); training will be slower"


def is_first_process() -> bool:
    """Whether this process is the one of a run on several devices that a person reads. True where there is one alone.

    Tells by what torchrun, SLURM and Lightning put into the environment.
    """
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank), "0") == "0"


def bf16_is_fast(device: str) -> bool:
    """Whether a "cuda" or "cpu" device multiplies bf16 in hardware, which makes training faster than in float32.

    Measured: with AMX, and with AVX512-BF16 (Zen 5: ZF-5 64.5 against 39.8 images/s, ResNet-18 57 against 32). Never
    decided by a timing, which would come out otherwise on a busy machine.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # emulated on GPUs before Ampere, and slower
    # Releases of torch that cannot tell stay at float32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(bool(capabilities.get(flag)) for flag in BF16_FLAGS)


# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def keep_freed_memory(keep: bool = True) -> None:
    """Whether malloc keeps what is freed. With False, as it does by itself, it maps large tensors anew every time.

    The kernel has to fill every new page with zeros, 250,000 of them in a step of ZF-5 on 32 images: a third of the
    time on a CPU. Kept memory costs a tenth more at the peak. Does nothing where malloc is not glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0 if keep else 65536)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**26)
    if not keep:
        mallopt(_MMAP_THRESHOLD, 2**25)  # to which it rises by itself


@cache
def claim_gpu(count: int, folder: Path | None = None) -> int:
    """The index of a GPU, of `count`, that no other process has claimed; held until this process ends.

    Processes that find none share: what a sweep with more jobs at once than GPUs asks for.

    Args:
        folder: where the locks are; None: the folder for temporary files.
    """
    import fcntl  # not on Windows

    for index in range(count):
        lock = os.open(
            (folder or Path(tempfile.gettempdir())) / f"sppnet-{os.getuid()}-gpu{index}.lock", os.O_CREAT | os.O_RDWR
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # stays open, and so locked
        except BlockingIOError:
            os.close(lock)
        else:
            return index
    return os.getpid() % count
