"""What a finished run leaves behind: result.json, whole or not at all, with where the number came from."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sppnet.metrics import wilson_interval

RESULT_FILE = "result.json"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes under a temporary name and renames, so that a reader never sees half a file."""
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_result(run: Path) -> dict[str, Any] | None:
    """The result of a finished run, None for one that is not finished. ValueError if the file is damaged."""
    path = run / RESULT_FILE
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text())
        return {**result, "top1_error": float(result["top1_error"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of a run ({error}); delete it to finish the run again") from error


def environment() -> dict[str, Any]:
    """Versions, commit and hardware that a number was made with."""
    packages = ("sppnet", "torch", "torchvision", "pytorch-lightning", "timm")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "commit": _commit(),
        "hardware": _hardware(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with a + where it has been changed since; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def result_text(result: dict[str, Any], run: Path) -> str:
    """A short table of a finished run, and where to look."""
    rows = [
        ("network", result["network"]),
        ("data", f"{result['data']} ({result['n']:,} validation images, {result['num_classes']} classes)"),
        ("protocol", result["protocol"]),
        ("top-1 error", _error(result["top1_wrong"], result["n"])),
        ("top-5 error", _error(result["top5_wrong"], result["n"])),
        ("trained", f"{result['epochs']} epochs in {_duration(result['seconds'])} on {result['hardware']}"),
        ("run directory", str(run)),
        ("TensorBoard", f"tensorboard --logdir {run}"),
    ]
    return "\n".join(f"  {name:<15}{value}" for name, value in rows)


def _error(wrong: int, n: int) -> str:
    low, high = wilson_interval(wrong, n)
    return f"{100 * wrong / n:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
