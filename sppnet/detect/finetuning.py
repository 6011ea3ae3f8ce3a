"""Fine-tunes fc6, fc7 and a new fc8 on windows of training images (arXiv:1406.4729v4, §4.1); convolutions stay.

Letters: n windows of a batch, d values of a pooled window, C classes of objects; label 0 is the background.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from sppnet.lightning_checkpoints import AtomicCheckpointIO, SaveCheckpoints, newest_checkpoint, silence_lightning
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.progress import Progress
from sppnet.runtime.signals import StopSignals

BACKGROUND = "background"

# Pools windows of images: (images int64 (n,), windows int64 (n,), mirrored bool (n,)) -> float32 (n, d).
PoolWindows = Callable[[np.ndarray, np.ndarray, np.ndarray], Tensor]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tuning: the `finetune` section. The rates are the paper's. Raises ValueError for values out of range."""

    steps: int = 300_000
    dropped_after: int = 250_000  # steps, after which the learning rate is a tenth
    learning_rate: float = 1e-4
    momentum: float = 0.9  # not in the paper; as in training
    weight_decay: float = 5e-4  # not in the paper; as in training
    dropout: float = 0.5
    batch_size: int = 128  # windows; not in the paper, but in its release
    positive_share: float = 0.25  # of the windows of a batch
    positive_overlap: float = 0.5  # windows that overlap an object at least so much are of its class
    background_overlap: float = 0.1  # from here to positive_overlap, windows are background; below, they are not used
    validate_every: int = 2_000  # steps
    validation_batches: int = 50
    gigabytes: float = 4.0  # of memory for pooled windows; if they do not fit, they are read from their maps

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "validation_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"finetune.{name}={getattr(self, name)}: must be at least 1")
        for name in ("momentum", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"finetune.{name}={getattr(self, name)}: must be at least 0 and below 1")
        for name in ("weight_decay", "gigabytes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"finetune.{name}={getattr(self, name)}: must be at least 0")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"finetune.learning_rate={self.learning_rate}: must be above 0")
        self._check_together()

    def _check_together(self) -> None:
        """Raises ValueError for values that do not fit each other."""
        if self.steps % self.validate_every:
            raise ValueError(
                f"finetune.steps={self.steps}: must be a multiple of finetune.validate_every={self.validate_every}"
            )
        if not 0 < self.positives < self.batch_size:
            raise ValueError(
                f"finetune.positive_share={self.positive_share}: must leave room for positives and background among "
                f"the {self.batch_size} windows of a batch"
            )
        if not 0 <= self.background_overlap < self.positive_overlap <= 1:
            raise ValueError(
                f"finetune.background_overlap={self.background_overlap}, finetune.positive_overlap="
                f"{self.positive_overlap}: must rise from 0 to 1"
            )

    @property
    def positives(self) -> int:
        """The positive windows of a batch."""
        return round(self.positive_share * self.batch_size)

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        return self.learning_rate * (1.0 if step < self.dropped_after else 0.1)


class LabelledWindows(NamedTuple):
    """Windows of the images of a split that are used in fine-tuning."""

    positives: np.ndarray  # int64 (p, 3): image, window, label from 1
    background: np.ndarray  # int64 (m, 2): image, window

    def check(self, split: str) -> None:
        """Raises ValueError if there is nothing to draw from."""
        if not len(self.positives) or not len(self.background):
            raise ValueError(
                f"fine-tuning: found {len(self.positives):,} positive and {len(self.background):,} background windows "
                f"in the {split} images, and needs some of both"
            )


def labelled_windows(highest: list[np.ndarray], settings: FinetuneSettings) -> LabelledWindows:
    """Labels the windows of all images by their overlaps with objects.

    Args:
        highest: for each image, float (K, C), each window's highest overlap with an object of each class.
        settings: the limits.
    """
    positives, background = [np.empty((0, 3), np.int64)], [np.empty((0, 2), np.int64)]
    for image, by_class in enumerate(highest):
        best, label = by_class.max(axis=1, initial=0), by_class.argmax(axis=1) + 1
        of_object = np.flatnonzero(best >= settings.positive_overlap)
        near = np.flatnonzero((best >= settings.background_overlap) & (best < settings.positive_overlap))
        positives.append(np.stack([np.full_like(of_object, image), of_object, label[of_object]], axis=1))
        background.append(np.stack([np.full_like(near, image), near], axis=1))
    return LabelledWindows(np.concatenate(positives), np.concatenate(background))


class WindowBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of pooled windows and their labels, each a function of the seed and the step alone.

    Item `step` is float32 (n, d) and int64 (n,): first the positives, drawn from all positive windows of all images
    with equal probability, then the background; each window mirrored or not.
    """

    def __init__(self, windows: LabelledWindows, pool: PoolWindows, settings: FinetuneSettings, seed: int) -> None:
        self.windows, self.pool, self.settings, self.seed = windows, pool, settings, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self.seed, step])
        number, size = self.settings.positives, self.settings.batch_size
        positives = self.windows.positives[random.integers(len(self.windows.positives), size=number)]
        background = self.windows.background[random.integers(len(self.windows.background), size=size - number)]
        mirrored = random.random(size) < 0.5

        drawn = np.concatenate([positives[:, :2], background])
        labels = np.concatenate([positives[:, 2], np.zeros(size - number, np.int64)])
        return self.pool(drawn[:, 0], drawn[:, 1], mirrored), torch.from_numpy(labels)


class StepSampler(Sampler[int]):
    """Samples the steps of an epoch, which are numbered through all epochs. Lightning calls `set_epoch`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps  # of one epoch
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        first, self.start = self.start, 0
        return iter(range(self.epoch * self.steps + first, (self.epoch + 1) * self.steps))


class StepLoader(DataLoader[Any]):
    """A loader that resumes in the middle of an epoch. Lightning saves and restores its state."""

    handed_out = 0  # batches of the epoch under way

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.handed_out = self.sampler.start  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the batches handed out in the epoch under way; 0 at its end, because the next epoch follows."""
        return {"batches": self.handed_out % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration skip the batches that were handed out."""
        self.sampler.start = state["batches"]  # type: ignore[attr-defined]


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


class WindowsToTuneOn(NamedTuple):
    """The windows of a split, and what pools them."""

    windows: LabelledWindows
    pool: PoolWindows


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
    trainer = Trainer(
        accelerator=hardware.device,
        devices=1,
        precision="32-true" if hardware.autocast is None else "bf16-mixed",
        max_epochs=settings.steps // settings.validate_every,
        logger=TensorBoardLogger(str(run), name="tensorboard", version=""),
        callbacks=[StepProgress(), SaveCheckpoints(run / "checkpoints", signals, steps=None, minutes=10)],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,  # SaveCheckpoints does it
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    batches = StepLoader(
        WindowBatches(train.windows, train.pool, settings, seed),
        batch_size=None,
        sampler=StepSampler(settings.validate_every),
    )
    tested = Subset(
        WindowBatches(validation.windows, validation.pool, settings, seed), range(settings.validation_batches)
    )
    with signals.handled():
        trainer.fit(
            tuner,
            batches,
            DataLoader(Subset(tested, range(settings.validation_batches)), batch_size=None),
            ckpt_path=newest_checkpoint(run / "checkpoints"),
            weights_only=True,
        )

    network.load_state_dict(tuner.best, strict=False)
    network.eval()
    return tuner.history
