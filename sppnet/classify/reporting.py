"""What the user sees of a training run: lines, and a progress bar on a terminal."""

import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from sppnet.classify.classifier import Classifier, size_text
from sppnet.results.records import shows_top5
from sppnet.runtime.names import counted
from sppnet.runtime.progress import clock, duration, speed


def epoch_line(epoch: dict[str, Any], epochs: int, seconds_left: float, classes: int) -> str:
    """Formats one line about a finished epoch, an entry of `Classifier.history` of a network with so many classes."""
    width = len(str(epochs))
    errors = ""
    if "n" in epoch:
        errors = f"top-1 error {100 * epoch['top1_wrong'] / epoch['n']:5.2f} %  "
        if shows_top5(classes):
            errors += f"top-5 error {100 * epoch['top5_wrong'] / epoch['n']:5.2f} %  "
    return (
        f"epoch {epoch['epoch']:>{width}}/{epochs}  {size_text(epoch['size'])}  loss {epoch['train_loss']:.4f}  "
        f"{errors}{speed(epoch['images_per_second'])} images/s  {clock(seconds_left)} left"
    )


def seconds_left(seconds: Sequence[float], epochs: int) -> float:
    """Estimates the seconds that are left of so many epochs from those of the finished ones, with validation.

    It is the mean of the last four, because epochs of different sizes take different times; without the first one,
    unless it is the only one, because loader processes start in it.
    """
    recent = (seconds[1:] or seconds)[-4:]
    return (epochs - len(seconds)) * sum(recent) / len(recent)


def steady_rate(ends: Sequence[tuple[float, int]], first: int, seconds: float) -> float | None:
    """Returns the images/s after the `first` steps, None before they are `seconds` in the past.

    The first steps take longer: they wait for loader processes, and libraries prepare their functions.

    Args:
        ends: of every step the time in seconds and the images so far.
    """
    if len(ends) <= first or ends[-1][0] - ends[first - 1][0] < seconds:
        return None
    (start, before), (end, images) = ends[first - 1], ends[-1]
    return (images - before) / (end - start)


class EpochLines(Callback):
    """Prints `epoch_line` after every epoch, above the progress bar if there is one."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        classifier, epochs = _classifier(trainer), trainer.max_epochs or 0
        history, classes = classifier.history, classifier.network.num_classes
        left = seconds_left([epoch["seconds"] for epoch in history], epochs)
        Tqdm.write(epoch_line(history[-1], epochs, left, classes), file=sys.stdout)
        sys.stdout.flush()


class Forecast(Callback):
    """Prints once, in the first epoch, about how long the whole training will take without validation.

    It counts `AFTER` seconds from the end of the `FIRST` steps on. A shorter first epoch has no need of it: its line
    says how much time is left. Not with frozen epochs, which are much faster than those that follow.
    """

    FIRST, AFTER = 5, 10.0

    def __init__(self) -> None:
        self.is_due = False
        self.ends: list[tuple[float, int]] = []  # as `steady_rate` takes them

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        classifier = _classifier(trainer)
        self.is_due = trainer.is_global_zero and not classifier.history and not classifier.recipe.frozen_epochs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_due:
            return
        seen = _classifier(trainer).images_seen * trainer.world_size
        self.ends.append((time.monotonic(), seen))
        rate = steady_rate(self.ends, self.FIRST, self.AFTER)
        if rate is None:
            return

        self.is_due, epochs = False, trainer.max_epochs or 0
        left = epochs * int(trainer.num_training_batches) * seen / (batch_idx + 1) / rate
        words = f"about {duration(left)} for {counted(epochs, 'epoch')}"
        Tqdm.write(f"{words}, at {speed(rate)} images/s and without validation", file=sys.stdout)
        sys.stdout.flush()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_due = False


class StepLines(Callback):
    """Prints a line about the epoch or the validation under way: after `FIRST` seconds, then every `SECONDS`.

    For output that is not a terminal, where there is no progress bar.
    """

    FIRST, SECONDS = 5.0, 30.0

    def __init__(self) -> None:
        self.due = 0.0  # time.monotonic() of the next line

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.due = time.monotonic() + self.FIRST

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer):
            classifier = _classifier(trainer)
            size = size_text(classifier.size_of_epoch(trainer.current_epoch))
            self._print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {size}  step {batch_idx + 1:,} of "
                f"{trainer.num_training_batches:,}  loss {classifier.mean_loss():.4f}  "
                f"{speed(classifier.images_per_second())} images/s"
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due(trainer):
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._print(f"{epoch}  validation  step {batch_idx + 1:,} of {trainer.num_val_batches[0]:,}")

    def _is_due(self, trainer: Trainer) -> bool:
        return trainer.is_global_zero and time.monotonic() >= self.due

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self.due = time.monotonic() + self.SECONDS


class ProgressBar(TQDMProgressBar):
    """A progress bar for the epoch under way, with size, loss and images/s.

    It is removed at the end of the epoch; the lines of `EpochLines` remain.
    """

    def init_train_tqdm(self) -> Tqdm:
        # Lightning sets the length when an epoch begins, which does not happen when a run resumes inside one.
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return Tqdm(
            desc=self._description(self.trainer),
            total=self.total_train_batches,
            initial=done,
            position=2 * self.process_position,
            disable=self.is_disabled,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_postfix({})
        self.train_progress_bar.set_description(self._description(trainer))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns the numbers to show at the end of the bar."""
        classifier = _classifier(trainer)
        if not classifier.images_seen:
            return {}
        return {"loss": f"{classifier.mean_loss():.3f}", "images/s": speed(classifier.images_per_second())}

    def _description(self, trainer: Trainer) -> str:
        size = size_text(_classifier(trainer).size_of_epoch(trainer.current_epoch))
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, {size}"


def _classifier(trainer: Trainer) -> Classifier:
    return cast(Classifier, trainer.lightning_module)
