"""Fine-tunes fc6, fc7 and a new fc8 on windows of training images (arXiv:1406.4729v4, §4.1); convolutions stay.

Letters: C classes of objects; label 0 is the background.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sppnet.detect.finetuning_windows import FinetuneSettings, StepSampler, WindowBatches, WindowsToTuneOn
from sppnet.lightning_checkpoints import AtomicCheckpointIO, SaveCheckpoints, newest_checkpoint, silence_lightning
from sppnet.lightning_processes import process_plugins
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.loaders import ResumingLoader
from sppnet.runtime.progress import Progress
from sppnet.runtime.signals import StopSignals

BACKGROUND = "background"


def with_background(network: SPPNet, classes: tuple[str, ...], *, dropout: float, seed: int) -> SPPNet:
    """Returns a copy of a network with a new fc8 for the background and C classes, drawn with deviation 0.01."""
    description = network.description() | {
        "num_classes": len(classes) + 1,
        "classes": [BACKGROUND, *classes],
        "dropout": dropout,
    }
    changed = SPPNet.from_description(description)
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("fc8.")}
    changed.load_state_dict(weights, strict=False)
    nn.init.normal_(changed.fc8.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(changed.fc8.bias)
    return changed


class Finetuner(LightningModule):
    """Trains the fully connected layers of a network on batches (pooled windows, labels).

    `history` holds a dict per validation: steps so far, train_loss, and wrong of n validation windows. The weights of
    the fewest wrong ones are kept in `best`.

    Args:
        network: with an output for the background and each class; changed in place.
        settings: rates and steps.
        seed: of the masks of dropout.
    """

    def __init__(self, network: SPPNet, settings: FinetuneSettings, seed: int) -> None:
        super().__init__()
        self.network, self.settings, self.seed = network, settings, seed
        network.backbone.requires_grad_(False)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.loss_sum, self.wrong, self.counted = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0

    def trained_weights(self) -> dict[str, Tensor]:
        """Returns the weights that fine-tuning changes, by name."""
        return {name: value for name, value in self.network.state_dict().items() if name.startswith("fc")}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns stochastic gradient descent with momentum; weights decay, biases do not."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.SGD(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.settings.weight_decay},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.settings.learning_rate,
            momentum=self.settings.momentum,
            fused=True,
        )

    def on_train_start(self) -> None:
        self.loss_sum = self.loss_sum.to(self.device)

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # Dropout depends only on the seed and the step, so that a resumed run draws the same masks.
        sequence = np.random.SeedSequence([self.seed, self.global_step])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.settings.rate(self.global_step)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        loss = F.cross_entropy(self.network.classify(features), labels)
        self.loss_sum += loss.detach()
        return loss

    def on_validation_epoch_start(self) -> None:
        self.wrong, self.counted = torch.zeros((), dtype=torch.int64, device=self.device), 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        features, labels = batch
        self.wrong += (self.network.classify(features).argmax(dim=1) != labels).sum()
        self.counted += len(labels)

    def on_validation_epoch_end(self) -> None:
        loss = float(self.loss_sum) / self.settings.validate_every
        if not math.isfinite(loss):
            raise ValueError(
                f"fine-tuning: the loss is not finite at step {self.global_step:,}; lower finetune.learning_rate="
                f"{self.settings.learning_rate}"
            )
        measured = {"steps": self.global_step, "train_loss": loss, "wrong": int(self.wrong), "n": self.counted}
        if all(measured["wrong"] < before["wrong"] for before in self.history):
            self.best = {name: value.detach().cpu().clone() for name, value in self.trained_weights().items()}
        self.history.append(measured)
        self.loss_sum = torch.zeros((), device=self.device)

        if self.logger is not None:
            values = {"finetune/loss": loss, "finetune/error_percent": 100 * measured["wrong"] / self.counted}
            self.logger.log_metrics(values, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds plain values and tensors only, so that the file loads with weights_only=True."""
        checkpoint["history"], checkpoint["best"] = self.history, self.best
        checkpoint["loss_sum"] = self.loss_sum.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what `on_save_checkpoint` added."""
        self.history, self.best = checkpoint["history"], checkpoint["best"]
        self.loss_sum = checkpoint["loss_sum"]


class StepProgress(Callback):
    """Shows the steps that are left as a progress bar or lines."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress = Progress("fine-tuning", int(trainer.estimated_stepping_batches) - trainer.global_step, "steps")

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.progress.add(1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.bar.close()


def finetune(
    network: SPPNet,
    train: WindowsToTuneOn,
    validation: WindowsToTuneOn,
    settings: FinetuneSettings,
    run: Path,
    *,
    hardware: Hardware,
    seed: int,
) -> list[dict[str, Any]]:
    """Fine-tunes a network of `with_background`, from the last checkpoint in the run directory if there is one.

    Writes `checkpoints/` after every validation, on a stop signal and every ten minutes, and `tensorboard/`. Stopped by
    a signal, it saves and raises `sppnet.runtime.signals.Stopped`.

    Args:
        network: gets the weights of the validation with the fewest errors.
        train, validation: windows of different images.
        settings: rates and steps.
        run: the run directory.
        hardware: the device, on one of which it trains, and the precision.
        seed: of windows and dropout.

    Returns the history of `Finetuner`.

    Raises ValueError if a split has no positive or no background windows, or the loss is not finite any more.
    """
    train.windows.check("training")
    validation.windows.check("validation")

    silence_lightning()
    tuner, signals = Finetuner(network, settings, seed), StopSignals()
    trainer = _trainer(settings, run, hardware, signals)
    drawn, tested = (WindowBatches(split.windows, split.pool, settings, seed) for split in (train, validation))

    with signals.handled():
        trainer.fit(
            tuner,
            ResumingLoader(drawn, batch_size=None, sampler=StepSampler(settings.validate_every)),
            DataLoader(tested, batch_size=None, sampler=range(settings.validation_batches)),
            ckpt_path=newest_checkpoint(run / "checkpoints"),
            weights_only=True,
        )

    network.load_state_dict(tuner.best, strict=False)
    network.eval()
    return tuner.history


def _trainer(settings: FinetuneSettings, run: Path, hardware: Hardware, signals: StopSignals) -> Trainer:
    """Returns a trainer for one device, whose epochs end with a validation."""
    return Trainer(
        accelerator=hardware.device,
        devices=1,
        precision="32-true" if hardware.autocast is None else "bf16-mixed",
        max_epochs=settings.steps // settings.validate_every,
        logger=TensorBoardLogger(str(run), name="tensorboard", version=""),
        callbacks=[StepProgress(), SaveCheckpoints(run / "checkpoints", signals, steps=None, minutes=10)],
        plugins=[AtomicCheckpointIO(), *process_plugins(devices=1, nodes=1)],
        enable_checkpointing=False,  # SaveCheckpoints does it
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
