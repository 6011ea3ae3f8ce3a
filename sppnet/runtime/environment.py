"""The versions, commit and hardware behind a number."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sppnet.runtime.machine import core_count
from sppnet.runtime.names import counted


def environment(gpus: int | None = None) -> dict[str, Any]:
    """The versions of packages, the commit and the hardware that a number is made with, as plain values.

    Args:
        gpus: how many were used, over all machines; None: all of this machine.
    """
    packages = ("sppnet", "torch", "torchvision", "pytorch-lightning", "timm")
    return {
        "versions": {"python": platform.python_version()} | {name: package_version(name) for name in packages},
        "commit": _commit(),
        "hardware": _hardware(gpus),
    }


def package_version(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with a + if files have changed since; None outside a checkout."""
    package = Path(__file__).parent
    command = ["git", "-C", str(package), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware(gpus: int | None) -> str:
    """The GPUs, or the cores that this process may use."""
    if torch.cuda.is_available():
        return f"{gpus or torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{counted(core_count(), 'core')} of {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
