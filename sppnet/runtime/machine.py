"""Queries and settings of the machine: cores, loader processes, bf16 support, malloc, free GPUs."""

import ctypes
import fcntl  # not on Windows
import os
import tempfile
from functools import cache
from pathlib import Path

import torch

from sppnet.runtime.names import counted

# Keys of torch.cpu.get_capabilities(): instructions with which training in bf16 was measured to be faster.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")


def worker_count(requested: int | None, processes: int = 1) -> int:
    """The number of loader processes for each of `processes` training or testing processes on this machine.

    It is `requested` or, if that is None, a process's share of the cores, at most 16. Raises ValueError for numbers
    below 0, and for more than the machine could start without running out of memory.
    """
    if requested is None:
        return min(16, max(1, core_count() // max(1, processes)))
    if requested < 0:
        raise ValueError(f"workers={requested}: must be at least 0")
    if requested > most_processes():
        raise ValueError(
            f"workers={requested}: must be at most {most_processes()} on a machine of {counted(core_count(), 'core')}"
        )
    return requested


def most_processes() -> int:
    """The most processes of one kind worth starting here: four per core, at least 16, as some wait for slow disks."""
    return max(16, 4 * core_count())


def processes_here(accelerator: str, devices: int | str) -> int:
    """The number of processes that a run has on this machine: one for each device.

    Args:
        accelerator: "auto", "cpu" or "gpu".
        devices: "auto", a number from 1, -1 for all GPUs, or their indices: "0,2".

    Raises ValueError for devices that this machine does not have.
    """
    gpus = torch.cuda.device_count() if accelerator != "cpu" and torch.cuda.is_available() else 0
    return _gpu_processes(str(devices), gpus) if gpus else _cpu_processes(str(devices))


def _cpu_processes(devices: str) -> int:
    if devices == "auto":
        return 1
    if not devices.isdigit():
        raise ValueError(f"trainer.devices={devices}: must be auto or a number from 1 on a CPU")
    if int(devices) > most_processes():
        raise ValueError(f"trainer.devices={devices}: must be at most {most_processes()} processes on this CPU")
    return int(devices)


def _gpu_processes(devices: str, gpus: int) -> int:
    if devices in ("auto", "-1"):
        return gpus
    if "," in devices:
        indices = {int(index) for index in devices.split(",") if index}
        if max(indices) >= gpus:
            raise ValueError(f"trainer.devices={devices}: must be from 0 to {gpus - 1}, the GPUs of this machine")
        return len(indices)
    if int(devices) > gpus:
        raise ValueError(f"trainer.devices={devices}: must be at most {gpus}, the GPUs of this machine")
    return int(devices)


def core_count() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # "max" where there is none


def memory_bytes() -> int:
    """The memory of this machine in bytes, or of the container that this process runs in."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(memory, int(limit)) if limit.isdecimal() else memory


def busy_machine() -> str | None:
    """A warning if other programs keep all cores of this machine busy already, else None."""
    cores = os.cpu_count() or 1  # of the whole machine, like the load
    load = os.getloadavg()[0]
    if load <= cores:
        return None
    return f"this machine is busy (load {load:.1f} on {counted(cores, 'core')}); training will be slower"


def bf16_is_fast(device: str) -> bool:
    """Whether a "cuda" or "cpu" device multiplies bf16 in hardware, which makes training faster than in float32.

    Measured: with AMX, and with AVX512-BF16 (Zen 5: ZF-5 64.5 against 39.8 images/s, ResNet-18 57 against 32). It is
    never decided by a timing, which would differ on a busy machine.
    """
    if device == "cuda":
        # GPUs before Ampere emulate it, which is slower.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # With releases of torch that do not report it, the answer is no.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(bool(capabilities.get(flag)) for flag in _BF16_FLAGS)


# Constants of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def keep_freed_memory(keep: bool = True) -> None:
    """Makes glibc's malloc keep freed memory; `keep=False` restores its default, new pages for every large tensor.

    The kernel has to fill every new page with zeros, 250,000 of them in a step of ZF-5 on 32 images: a third of the
    time on a CPU. Kept memory costs a tenth more at the peak. Does nothing if malloc is not glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return

    mallopt(_MMAP_MAX, 0 if keep else 65536)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**26)
    if not keep:
        mallopt(_MMAP_THRESHOLD, 2**25)  # the value to which glibc raises it by itself


@cache
def claim_gpu(count: int, folder: Path | None = None) -> int:
    """Claims a GPU that no other process has claimed, until this process ends, and returns its index.

    If all are claimed, the GPU is shared, as a sweep with more jobs at once than GPUs needs.

    Args:
        count: GPUs of this machine.
        folder: of the lock files; None: the folder for temporary files.
    """
    folder = folder or Path(tempfile.gettempdir())
    for index in range(count):
        lock = os.open(folder / f"sppnet-{os.getuid()}-gpu{index}.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the file stays open, and so locked
        except BlockingIOError:
            os.close(lock)
        else:
            return index
    return os.getpid() % count
