"""What the user sees of a training run: lines, and a progress bar on a terminal."""

import sys
import time
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from sppnet.classify.classifier import Classifier, size_text
from sppnet.results.records import shows_top5
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


class EpochLines(Callback):
    """Prints `epoch_line` after every epoch, above the progress bar if there is one."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        classifier, epochs = _classifier(trainer), trainer.max_epochs or 0
        history, classes = classifier.history, classifier.network.num_classes
        # Epochs of different sizes take different times, so the mean of the last four predicts better than the last.
        recent = [epoch["seconds"] for epoch in history[-4:]]
        left = (epochs - len(history)) * sum(recent) / len(recent)
        Tqdm.write(epoch_line(history[-1], epochs, left, classes), file=sys.stdout)
        sys.stdout.flush()


class Forecast(Callback):
    """Prints once, `AFTER` seconds into the first epoch, about how long the whole training will take.

    Not with frozen epochs, which are much faster than those that follow.
    """

    AFTER = 10.0

    def __init__(self) -> None:
        self.due: float | None = None  # time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        classifier = _classifier(trainer)
        if trainer.is_global_zero and not classifier.history and not classifier.recipe.frozen_epochs:
            self.due = time.monotonic() + self.AFTER

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.due is None or time.monotonic() < self.due:
            return
        self.due, steps = None, (trainer.max_epochs or 0) * int(trainer.num_training_batches)
        classifier = _classifier(trainer)
        images = steps * trainer.world_size * classifier.images_seen / (batch_idx + 1)
        seconds = images / classifier.images_per_second()
        Tqdm.write(
            f"about {duration(seconds)} for {trainer.max_epochs} epochs, at {speed(classifier.images_per_second())} "
            "images/s and without validation",
            file=sys.stdout,
        )
        sys.stdout.flush()


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
