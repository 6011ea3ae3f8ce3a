"""Checkpoints that survive what happens to long runs: kills at any moment, full disks, damaged files, told to stop.

A folder of checkpoints holds `last.ckpt` and the one before it, `previous.ckpt`. A checkpoint is written under another
name, flushed to the disk and renamed, so that both are whole whenever the process dies.
"""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ASK_EVERY = 10  # steps between the questions of several processes whether one of them was told to stop


class Stopped(SystemExit):
    """Training was told to stop by a signal. Ends the process with `code`, unless it is caught."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and keeps the one before it if that is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.known_whole: Path | None = None

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        self.known_whole = Path(path)
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        content = io.BytesIO()  # torch.save hides why it cannot write to a file
        torch.save(checkpoint, content)
        # A damaged one must not take the place of the one it was replaced by.
        previous = path.with_name(PREVIOUS) if path == self.known_whole else None
        try:
            with atomic_file(path, previous=previous) as file:
                file.write(content.getbuffer())
        except OSError as error:
            kept = f"{path} is still the one before" if path.exists() else "there is none yet"
            raise OSError(f"{path}: cannot write a checkpoint ({error.strerror}); {kept}") from error
        self.known_whole = path


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that can be read, None where there is none at all.

    Warns of one that is damaged. Raises ValueError where there are some and all are damaged.
    """
    there = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    reasons = []
    for path in there:
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load itself does not look at the checksums
                if (member := archive.testzip()) is not None:
                    raise ValueError(f"{member}: wrong checksum")
            torch.load(path, map_location="cpu", weights_only=True)
        except PermissionError:
            raise
        except Exception as error:  # both fail on damaged files in a dozen ways
            reasons.append(f"{path} is damaged ({first_line(error)})")
        else:
            for reason in reasons:
                warnings.warn(f"{reason}; resuming from {path}", stacklevel=2)
            return path
    if reasons:
        raise ValueError(f"{'; '.join(reasons)}; delete {folder} to train from the start")
    return None


def recorded_precision(path: Path) -> str | None:
    """The precision that a checkpoint was trained in, as Lightning names it; None where it was not recorded."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint.get("precision") if isinstance(checkpoint, dict) else None


class Checkpoints(Callback):
    """Saves `folder`/last.ckpt after every epoch and at intervals inside epochs, and stops a run that is told to stop.

    A validation that fails keeps its epoch as well; it is run again after a restart.

    Args:
        steps: between checkpoints inside an epoch; None: none by steps. Several processes: at multiples of ASK_EVERY.
        minutes: the same by the clock.
    """

    def __init__(self, folder: Path, *, steps: int | None, minutes: float | None) -> None:
        self.path, self.steps, self.minutes = folder / LAST, steps, minutes
        self.saved_at, self.saved_step = time.monotonic(), 0
        self.where = "nothing is saved yet"
        self.signal: signal.Signals | None = None
        self.interrupts = 0

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Within it SIGTERM, SIGINT and SLURM's SIGUSR1 end the step under way, save, and raise Stopped.

        Its code is 130 for SIGINT, 75 ("try again later") for the others. SIGUSR1 also puts the job back into SLURM's
        queue. A second SIGINT ends the process at once.
        """
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        try:
            yield
        finally:
            if _in_main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _listen(self) -> None:
        if _in_main_thread():
            for number in SIGNALS:
                signal.signal(number, self._told_to_stop)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()  # Lightning's own handlers save in the middle of a step (SIGUSR1) or first end the epoch
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()  # what `_save_to_validate` wrote has been read
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step
        if trainer.ckpt_path:
            self.where = f"{trainer.ckpt_path} is what it went on from"
        if self._any_told_to_stop(trainer):
            self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # The last is saved with the validation after it. Processes ask each other, which waits for the devices.
        if trainer.is_last_batch or (trainer.world_size > 1 and trainer.global_step % ASK_EVERY):
            return
        stop = self._any_told_to_stop(trainer)
        if stop or self._is_due(trainer):
            self._save(trainer)
        if stop:
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._any_told_to_stop(trainer):
            self._save_to_validate(trainer)
            self._stop(trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Several processes may have different numbers of batches, and cannot ask each other here.
        if trainer.world_size == 1 and self.signal is not None:
            self._save_to_validate(trainer)
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # A single process alone: others would wait for it for ever.
        if trainer.validating and trainer.world_size == 1 and not isinstance(exception, Stopped):
            self._save_to_validate(trainer)

    def _save_to_validate(self, trainer: Trainer) -> None:
        # This is how Lightning knows that a validation was begun and has to be run after a restart, from its start.
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.reset()
        progress.increment_ready()
        progress.increment_started()
        self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if self._any_told_to_stop(trainer) and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._stop(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if self.steps is not None and step // self.steps > self.saved_step // self.steps:
            return True
        if self.minutes is None:
            return False
        due = time.monotonic() - self.saved_at > 60 * self.minutes
        return due if trainer.world_size == 1 else bool(trainer.strategy.broadcast(due))

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step
        self.where = f"{self.path} is of epoch {trainer.current_epoch + 1}, step {trainer.global_step}"

    def _told_to_stop(self, number: int, frame: Any) -> None:
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            os._exit(130)
        if self.signal is None:
            self.signal = signal.Signals(number)
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        _say(f"\n{signal.Signals(number).name}: stopping after this step{again}")

    def _any_told_to_stop(self, trainer: Trainer) -> bool:
        told = self.signal is not None
        return told if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(told, all=False)

    def _stop(self, trainer: Trainer) -> None:
        number = self.signal or signal.SIGTERM  # another process was told
        if trainer.is_global_zero:
            if number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
                _requeue()
            _say(f"stopped by {number.name}; {self.where}; the same command resumes from there")
        raise Stopped(130 if number == signal.SIGINT else os.EX_TEMPFAIL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _say(line: str) -> None:
    """Not by print: a signal may have come in the middle of one. And nobody may be left to read it."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode())


def _requeue() -> None:
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"cannot requeue job {job}: {error}")
