"""Checkpoints that survive kills, full disks, damaged files and stop signals.

A folder of checkpoints holds `last.ckpt`, the one before it, `previous.ckpt`, and where epochs can be compared the one
after the best epoch, `best.ckpt`. A checkpoint is written under another name, flushed to the disk and renamed, so that
none is ever half written, whenever the process dies.
"""

import io
import logging
import signal
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sppnet.runtime.cluster import requeue_slurm_job
from sppnet.runtime.files import atomic_file, keep_as
from sppnet.runtime.names import first_line
from sppnet.runtime.signals import REQUEUE_SIGNALS, Stopped, StopSignals, exit_code, write_to_stderr

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
_STEPS_BETWEEN_CHECKS = 10  # with several processes: steps between checks for a stop signal on any of them


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints atomically, and keeps the one before unless that may be damaged."""

    def __init__(self) -> None:
        super().__init__()
        self._known_intact: Path | None = None  # a checkpoint that this object has read or written

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a checkpoint."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        self._known_intact = Path(path)
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replaces the checkpoint at `path`, which becomes `previous.ckpt`. Raises OSError if it cannot be written."""
        path = Path(path)
        content = io.BytesIO()  # written to a file directly, torch.save would hide why it cannot
        torch.save(checkpoint, content)

        # A damaged last.ckpt must not replace the intact previous.ckpt from which the run was resumed.
        previous = path.with_name(PREVIOUS) if path == self._known_intact else None
        try:
            with atomic_file(path, previous=previous) as file:
                file.write(content.getbuffer())
        except OSError as error:
            kept = f"{path} is still the one before" if path.exists() else "there is none yet"
            raise OSError(f"{path}: cannot write a checkpoint ({error.strerror}); {kept}") from error
        self._known_intact = path


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint in `folder` that can be read, None if there is none at all.

    Warns of a damaged one. Raises ValueError if all are damaged.
    """
    reasons = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            _check_intact(path)
        except PermissionError:
            raise
        except Exception as error:  # zipfile and torch fail on damaged files in a dozen ways
            reasons.append(f"{path} is damaged ({first_line(error)})")
        else:
            for reason in reasons:
                warnings.warn(f"{reason}; resuming from {path}", stacklevel=2)
            return path
    if reasons:
        raise ValueError(f"{'; '.join(reasons)}; delete {folder} to train from the start")
    return None


def _check_intact(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
        if (member := archive.testzip()) is not None:
            raise ValueError(f"{member}: wrong checksum")
    torch.load(path, map_location="cpu", weights_only=True)


def _epoch_of(path: Path) -> int | None:
    """Returns the epoch of a checkpoint, from 0; None if there is none, or it is damaged."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])
    except Exception:  # zipfile and torch fail on damaged files in a dozen ways
        return None


def recorded_precision(path: Path) -> str | None:
    """Returns the precision that a checkpoint was trained in, as Lightning names it; None if it is not recorded."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint.get("precision") if isinstance(checkpoint, dict) else None


class SaveCheckpoints(Callback):
    """Saves `folder`/last.ckpt after every epoch, at intervals inside epochs, and when a signal stops the run.

    After a stop signal it saves and raises Stopped: at the end of the step under way, or in validation at once; with
    several processes after up to 10 more steps, or at the end of the validation. SIGUSR1 and SIGUSR2 also put a SLURM
    job back into the queue. If validation fails, the epoch is still saved, and validation runs again after a restart.

    Args:
        folder: of the checkpoints.
        signals: the stop signals of this process.
        steps: between checkpoints inside an epoch; None: not by steps. With several processes, multiples of 10 only.
        minutes: between checkpoints inside an epoch; None: not by the clock.
        best_epoch: returns the best epoch so far, from 0, whose checkpoint is kept as best.ckpt; None before there is
            one.
    """

    def __init__(
        self,
        folder: Path,
        signals: StopSignals,
        *,
        steps: int | None,
        minutes: float | None,
        best_epoch: Callable[[LightningModule], int | None] = lambda _: None,
    ) -> None:
        self.path, self.signals, self.steps, self.minutes = folder / LAST, signals, steps, minutes
        self.best_path, self.best_epoch = folder / BEST, best_epoch
        self._resumed_after: int | None = None  # the epoch whose end the checkpoint was saved at
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._saved_text = "nothing is saved yet"  # for the message after a stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.install()  # Lightning's handlers save in the middle of a step (SIGUSR1) or finish the epoch first
        # The checkpoint may say that its validation was under way (`_save_to_validate`). It runs from its start.
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()

        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.ckpt_path:
            self._repair_best(trainer, pl_module)
            self._saved_text = f"nothing is saved since it resumed from {trainer.ckpt_path}"
        if self._stop_requested(trainer):
            self._stop(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        if progress["processed"] > progress["completed"]:  # else it was saved inside an epoch
            self._resumed_after = checkpoint["epoch"]

    def _repair_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes best.ckpt agree with the checkpoint that the run resumes from.

        The run may have died between saving an epoch and giving it that name, or resume from before the best epoch,
        because a newer checkpoint is damaged.
        """
        best = self.best_epoch(pl_module)
        if not trainer.is_global_zero or best == _epoch_of(self.best_path):
            return
        if best is not None and best == self._resumed_after:
            keep_as(Path(str(trainer.ckpt_path)), self.best_path)
        else:
            self.best_path.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch:
            return  # saved with the validation that follows
        if trainer.world_size > 1 and trainer.global_step % _STEPS_BETWEEN_CHECKS:
            return  # asking the other processes waits for the devices

        stop = self._stop_requested(trainer)
        if stop or self._is_due(trainer):
            self._save(trainer)
        if stop:
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stop_requested(trainer):
            self._save_to_validate(trainer)
            self._stop(trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Several processes may have different numbers of batches, and so cannot ask each other here.
        if trainer.world_size == 1 and self.signals.received is not None:
            self._save_to_validate(trainer)
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # With a single process only: with several, saving would wait forever for those that did not fail.
        if trainer.validating and trainer.world_size == 1 and not isinstance(exception, Stopped):
            self._save_to_validate(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if trainer.is_global_zero and self.best_epoch(pl_module) == trainer.current_epoch:
            keep_as(self.path, self.best_path)
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if self._stop_requested(trainer) and not is_last:
            self._stop(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether it is time for a checkpoint inside an epoch: the same answer in every process."""
        step = trainer.global_step
        if self.steps is not None and step // self.steps > self._saved_step // self.steps:
            return True
        if self.minutes is None:
            return False
        due = time.monotonic() - self._saved_at > 60 * self.minutes
        return due if trainer.world_size == 1 else bool(trainer.strategy.broadcast(due))

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._saved_text = f"{self.path} is of epoch {trainer.current_epoch + 1}, step {trainer.global_step}"

    def _save_to_validate(self, trainer: Trainer) -> None:
        """Saves a trained epoch whose validation is to run after a restart, from its start."""
        # Lightning runs a validation again if the checkpoint says that it was started and not finished.
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.reset()
        progress.increment_ready()
        progress.increment_started()
        self._save(trainer)

    def _stop_requested(self, trainer: Trainer) -> bool:
        """Whether any process has received a stop signal. Every process has to call it."""
        return _in_any_process(trainer, self.signals.received is not None)

    def _stop(self, trainer: Trainer) -> None:
        """Raises Stopped in every process, which all have to call it."""
        # Signals reach processes at different moments, and that of the first one may not have come yet.
        requeue = _in_any_process(trainer, self.signals.received in REQUEUE_SIGNALS)
        number = self.signals.received or (signal.SIGUSR1 if requeue else signal.SIGTERM)
        if trainer.is_global_zero:
            write_to_stderr(f"stopped by {number.name}; {self._saved_text}; the same command resumes from there")
            if requeue:
                requeue_slurm_job()  # last, as SLURM then ends this process
        if requeue and trainer.world_size > 1:
            # Lightning kills the first process seconds after another one has ended, and the controller may be slow.
            trainer.strategy.barrier()
        raise Stopped(exit_code(number))


def _in_any_process(trainer: Trainer, decision: bool) -> bool:
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


def silence_lightning() -> None:
    """Silences Lightning's messages that the user cannot act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*LeafSpec.*deprecated.*",
        ".*GPU available but not used.*",
        ".*The `srun` command is available on your system but is not used.*",  # process_plugins decides
    ):
        warnings.filterwarnings("ignore", message)
