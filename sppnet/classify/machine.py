"""What training and testing ask of the machine: how many loader processes, whether bf16 pays, which GPU is free."""

import ctypes
import os
import tempfile
from functools import cache
from pathlib import Path

import torch


def worker_count(requested: int | None, processes: int = 1) -> int:
    """`requested`, or one per core that this process may use, shared among its processes, at most 16."""
    if requested is not None:
        if requested < 0:
            raise ValueError(f"workers={requested}: must be at least 0")
        return requested
    return min(16, max(1, core_count() // max(1, processes)))


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
    """Whether a "cuda" or "cpu" device multiplies bf16 faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    # Releases of torch that cannot tell stay at float32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16"))


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
