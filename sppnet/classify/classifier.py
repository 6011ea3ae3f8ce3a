"""One training step, one validation pass, and what they report."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor

from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import cosine_factor, plateau_factor
from sppnet.metrics import count_wrong
from sppnet.network import SPPNet

LOG_EVERY = 50  # steps between the numbers that cost a wait for the device
CHANCE_EPOCHS, CHANCE_STEPS = 3, 200  # that a network may take to learn anything


class Classifier(LightningModule):
    """Trains and validates an SPPNet on batches (images, labels) as a recipe says.

    Args:
        network: the network to train.
        recipe: rates, schedule, regularization.
        seed: of the masks of dropout.
        size_of_epoch: from the epoch, counted from 0, to its side in pixels.
        training_labels: int64 (n,), labels of all training images.
        validation_images: how many images a validation must count.

    `history` holds a dict per finished epoch: epoch from 1, size in pixels, train_loss, learning_rate,
    images_per_second and seconds; and, after a validation, top1_wrong and top5_wrong of n images. It travels in the
    checkpoint, and the learning rate of a step is a function of it and of the step: a resumed run has no schedule to
    restore. The same holds for the sums of an epoch under way.

    Raises ValueError, in all processes at the same step, where the loss or a weight of one of them is no longer finite:
    at the latest before that would be saved.
    """

    def __init__(
        self,
        network: SPPNet,
        recipe: Recipe,
        *,
        seed: int,
        size_of_epoch: Callable[[int], int],
        training_labels: np.ndarray,
        validation_images: int,
    ) -> None:
        super().__init__()
        self.network, self.recipe, self.seed, self.size_of_epoch = network, recipe, seed, size_of_epoch
        self.guessing_loss = guessing_loss(training_labels, network.num_classes, recipe.label_smoothing)
        self.validation_images = validation_images

        self.history: list[dict[str, Any]] = []
        self.error_counts = torch.zeros(3, dtype=torch.int64)  # top-1, top-5, images of the validation under way
        self.loss_sum = torch.zeros(())
        self.images_seen = 0
        self.epoch_started = 0.0
        self.warned_of_guessing = False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        biases = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        return torch.optim.SGD(
            [
                {"params": weights, "weight_decay": self.recipe.weight_decay},
                {"params": biases, "weight_decay": 0.0},
            ],
            lr=self.recipe.learning_rate,
            momentum=self.recipe.momentum,
            fused=True,
        )

    def learning_rate(self) -> float:
        """The rate of the coming step."""
        if self.recipe.plateau_patience is not None:
            errors = [epoch["top1_wrong"] / epoch["n"] for epoch in self.history]
            factor = plateau_factor(errors, self.recipe.plateau_patience, self.recipe.plateau_drops)
        else:
            assert self.recipe.warmup_epochs is not None
            total = int(self.trainer.estimated_stepping_batches)
            warmup = round(self.recipe.warmup_epochs * total / self.recipe.epochs)
            factor = cosine_factor(self.global_step, warmup, total)
        return factor * self.recipe.learning_rate

    def mean_loss(self) -> float:
        """Of this process's images of the epoch under way."""
        return float(self.loss_sum) / self.images_seen

    def rate(self) -> float:
        """Images per second of all processes together, since the epoch began."""
        return self.images_seen * self.trainer.world_size / (time.perf_counter() - self.epoch_started)

    def on_train_start(self) -> None:
        self.loss_sum = self.loss_sum.to(self.device)
        self._validate_the_last_epoch()

    def on_train_epoch_start(self) -> None:
        self._validate_the_last_epoch()
        self.loss_sum = torch.zeros((), device=self.device)
        self.images_seen, self.epoch_started = 0, time.perf_counter()

    def _validate_the_last_epoch(self) -> None:
        # Lightning validates multiples of this number alone.
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.trainer.check_val_every_n_epoch = 1

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # Dropout is a function of (seed, step, process), so that a resumed run draws what the uninterrupted one did.
        # Another number of processes draws other masks.
        sequence = np.random.SeedSequence([self.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.learning_rate()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels, label_smoothing=self.recipe.label_smoothing)
        self.loss_sum += loss.detach() * len(labels)
        self.images_seen += len(labels)
        if self.global_step % LOG_EVERY == 0:
            self._log_step(loss, images.shape[-1])
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if self.recipe.clip_gradient_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.recipe.clip_gradient_norm)
        elif self.global_step % LOG_EVERY == 0:
            norm = torch.nn.utils.get_total_norm(gradients)
        if self.global_step % LOG_EVERY == 0:
            self._write("train/gradient_norm", float(norm))

    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self._check_finite()
            self.history.append(
                {
                    "epoch": self.current_epoch + 1,
                    "size": self.size_of_epoch(self.current_epoch),
                    "train_loss": float(self.trainer.strategy.reduce(self.loss_sum / self.images_seen)),
                    "learning_rate": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
                    "images_per_second": self.rate(),
                    "seconds": time.perf_counter() - self.epoch_started,
                }
            )
            self._warn_of_guessing()
            self._write("train/epoch_loss", self.history[-1]["train_loss"])
            self._write("train/images_per_second", self.history[-1]["images_per_second"])

    def on_validation_epoch_start(self) -> None:
        self.error_counts = torch.zeros(3, dtype=torch.int64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        # forward, not the call: the compiled network is for training's shapes alone.
        self.error_counts += count_wrong(self.network.forward(images).float(), labels)

    def on_validation_epoch_end(self) -> None:
        counts = self.trainer.strategy.reduce(self.error_counts, reduce_op="sum")
        top1_wrong, top5_wrong, n = (int(count) for count in counts)
        if n != self.validation_images:
            raise RuntimeError(f"validation counted {n} images, but there are {self.validation_images}")
        seconds = time.perf_counter() - self.epoch_started
        self.history[-1].update(top1_wrong=top1_wrong, top5_wrong=top5_wrong, n=n, seconds=seconds)
        self._write("val/top1_error_percent", 100 * top1_wrong / n)
        self._write("val/top5_error_percent", 100 * top5_wrong / n)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # What load_network needs, in plain values, so that the file loads with weights_only=True.
        self._check_finite()
        checkpoint["network"] = self.network.description()
        checkpoint["precision"] = self.trainer.precision
        checkpoint["history"] = self.history
        checkpoint["epoch_so_far"] = {
            "loss_sum": self.trainer.strategy.reduce(self.loss_sum),
            "images_seen": self.images_seen,
            "seconds": time.perf_counter() - self.epoch_started,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]
        so_far = checkpoint["epoch_so_far"]
        self.loss_sum, self.images_seen = so_far["loss_sum"], so_far["images_seen"]
        self.epoch_started = time.perf_counter() - so_far["seconds"]

    def _check_finite(self) -> None:
        weights = torch.stack([p.isfinite().all() for p in self.parameters()]).all()
        bad = (~torch.stack([self.loss_sum.isfinite(), weights])).int()
        # One decision of all processes: those that went on alone would wait for the others for ever.
        bad_losses, bad_weights = (int(count) for count in self.trainer.strategy.reduce(bad, reduce_op="sum"))
        if not bad_losses and not bad_weights:
            return
        trainer = self.trainer
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        what = "the loss is" if bad_losses else "weights are"
        raise ValueError(
            f"{what} not finite any more, at the latest in epoch {trainer.current_epoch + 1}, step "
            f"{self.global_step}, size {self.size_of_epoch(trainer.current_epoch)}, "
            f"rate {self.learning_rate():.3g}, gradient norm {float(norm):.3g}; the last checkpoint is of before; "
            "lower recipe.learning_rate, or set recipe.clip_gradient_norm=5"
        )

    def _warn_of_guessing(self) -> None:
        """Warns once if the loss is still that of guessing by the frequency of the classes."""
        epochs = len(self.history)
        patient = epochs < max(CHANCE_EPOCHS, 1 + (self.recipe.warmup_epochs or 0)) or self.global_step < CHANCE_STEPS
        if patient or self.warned_of_guessing or not self.history[-1]["train_loss"] > 0.99 * self.guessing_loss > 0:
            return
        self.warned_of_guessing = True
        if not self.trainer.is_global_zero:
            return
        warnings.warn(
            f"the loss after {epochs} epochs is {self.history[-1]['train_loss']:.3f}; guessing gives "
            f"{self.guessing_loss:.3f}: is recipe.learning_rate too low, or too high for recipe.batch_size? do "
            "recipe.initialization and recipe.input_std belong together (paper with 1, fan_in with about 58)?",
            stacklevel=2,
        )

    def _log_step(self, loss: Tensor, size: int) -> None:
        self._check_finite()
        self._write("train/loss", float(loss.detach()))
        self._write("train/learning_rate", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        self._write("train/size", float(size))

    def _write(self, name: str, value: float) -> None:
        if self.logger is not None:
            self.logger.log_metrics({name: value}, step=self.global_step)


def guessing_loss(labels: np.ndarray, classes: int, label_smoothing: float) -> float:
    """Returns the lowest loss of a network that gives all images the same scores: the entropy of the training labels.

    With label smoothing, of the smoothed labels. ln(classes) for classes of equal size.
    """
    frequencies = np.bincount(labels, minlength=classes) / len(labels)
    targets = (1 - label_smoothing) * frequencies + label_smoothing / classes
    return float(-sum(target * np.log(target) for target in targets if target > 0))
