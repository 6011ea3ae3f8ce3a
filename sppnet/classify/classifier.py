"""The training step, the validation step, and the numbers they report."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor

from sppnet.classify.accumulation import fewest_parts, loss_in_parts
from sppnet.classify.averaging import WeightAverage
from sppnet.classify.best import stop_reason
from sppnet.classify.finite import not_finite
from sppnet.classify.guessing import guessing_warning
from sppnet.classify.mixing import TrainingLoss
from sppnet.classify.optimizers import build_optimizer
from sppnet.classify.rates import highest_rate, schedule_factor
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import plateau_factor
from sppnet.metrics import count_wrong
from sppnet.network import SPPNet

_LOG_EVERY = 50  # steps between logging numbers that cost a wait for the device


class Classifier(LightningModule):
    """Trains and validates an SPPNet on batches (images, labels) by a recipe.

    Args:
        network: the network to train.
        recipe: rates, schedule, regularization.
        seed: of the masks of dropout.
        size_of_epoch: from the epoch, counted from 0, to its side in pixels; None if every batch has its own.
        training_labels: int64 (n,), labels of all training images.
        validation_images: how many images a validation must count.
        parts: of every step, whose gradients are added up; None: as few as fit into memory at a side of `largest_side`.
        largest_side: of the images in training, in pixels, where `parts` is None.

    `history` holds a dict per finished epoch: epoch from 1, size in pixels, train_loss, learning_rate,
    images_per_second and seconds; after a validation also top1_wrong and top5_wrong of n images. It is saved in the
    checkpoint, as are the sums of the epoch under way. The learning rate is a function of `history` and of the step, so
    that a resumed run has no schedule to restore.

    Raises ValueError, in all processes at the same step, if the loss or a weight of any of them is not finite: at the
    latest before it would be saved.
    """

    def __init__(
        self,
        network: SPPNet,
        recipe: Recipe,
        *,
        seed: int,
        size_of_epoch: Callable[[int], int | None],
        training_labels: np.ndarray,
        validation_images: int,
        parts: int | None = 1,
        largest_side: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.recipe, self.seed, self.size_of_epoch = network, recipe, seed, size_of_epoch
        self.loss = TrainingLoss(recipe, training_labels, network.num_classes)
        self.guessing_loss = self.loss.of_guessing()
        self.validation_images, self.largest_side = validation_images, largest_side
        self.parts = parts
        self.average = None if recipe.ema_decay is None else WeightAverage(network, recipe.ema_decay)
        self._backbone_weights = [p for p in network.backbone.parameters() if p.requires_grad]

        self.history: list[dict[str, Any]] = []
        self.error_counts = torch.zeros(3, dtype=torch.int64)  # top-1, top-5, images of the validation under way
        self.loss_sum = torch.zeros(())  # over the images of this process in the epoch under way
        self.images_seen = 0  # by this process in the epoch under way
        self.epoch_started = 0.0  # time.perf_counter()
        self.warned_of_guessing = False
        self.current_rate = 0.0  # of the step under way

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns the optimizer of the recipe."""
        return build_optimizer(self.network, self.recipe)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:  # before any checkpoint of this step
            self.average.update(self.network, self.global_step + 1)

    def optimizer_zero_grad(self, *args: Any) -> None:
        if self.parts == 1:  # else `training_step` does, before it adds up gradients
            super().optimizer_zero_grad(*args)

    def learning_rate(self) -> float:
        """Returns the learning rate of the next step."""
        if self.recipe.plateau_patience is not None:
            errors = [epoch["top1_wrong"] / epoch["n"] for epoch in self.history]
            factor = plateau_factor(errors, self.recipe.plateau_patience, self.recipe.plateau_drops)
        else:
            factor = schedule_factor(self.recipe, self.global_step, int(self.trainer.estimated_stepping_batches))
        return factor * highest_rate(self.recipe)

    def mean_loss(self) -> float:
        """Returns the mean loss over this process's images in the epoch under way."""
        return float(self.loss_sum) / self.images_seen

    def images_per_second(self) -> float:
        """Returns the images per second of all processes together since the epoch began."""
        return self.images_seen * self.trainer.world_size / (time.perf_counter() - self.epoch_started)

    # Training.

    def on_train_start(self) -> None:
        self.loss_sum = self.loss_sum.to(self.device)
        self._validate_the_last_epoch()
        self._stop_early()
        if self.average is not None:
            self.average.to(self.device)
        if self.parts is None:
            self.parts = self._fewest_parts()

    def on_train_epoch_start(self) -> None:
        self._validate_the_last_epoch()
        self.loss_sum = torch.zeros((), device=self.device)
        self.images_seen, self.epoch_started = 0, time.perf_counter()

    def _validate_the_last_epoch(self) -> None:
        # Otherwise Lightning would validate it only if it were a multiple of this number.
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.trainer.check_val_every_n_epoch = 1

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # Dropout depends only on (seed, step, process), so that a resumed run draws the masks of the uninterrupted one.
        # With another number of processes the masks differ.
        sequence = np.random.SeedSequence([self.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

        self.current_rate = self.learning_rate()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.current_rate * group.get("lr_scale", 1.0)
        if self.recipe.frozen_epochs:
            self._train_backbone(self.current_epoch >= self.recipe.frozen_epochs)

    def _train_backbone(self, is_trained: bool) -> None:
        """Trains the backbone from here on, or does not: then it has no gradients, and BatchNorm its old statistics."""
        self.network.backbone.train(is_trained)
        for weights in self._backbone_weights:
            weights.requires_grad_(is_trained)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = self.loss.mix(*batch)
        if self.parts == 1:
            loss = self._training_loss(images, labels)
        else:
            self.zero_grad()
            loss = loss_in_parts(self._training_loss, images, labels, self.parts or 1)
        self.loss_sum += loss.detach() * len(labels)
        self.images_seen += len(labels)

        if self.global_step % _LOG_EVERY == 0:
            self._check_finite()
            size = float(images.shape[-1])
            numbers = {"train/loss": float(loss.detach()), "train/learning_rate": self.current_rate}
            self._log({**numbers, "train/size": size})
        return loss

    def _training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.network(images), labels)

    def _fewest_parts(self) -> int:
        """Returns the parts of a step that fit into the memory of every process. Every process has to call it."""
        images = self.recipe.batch_size // self.trainer.world_size
        precision = self.trainer.precision_plugin.forward_context
        parts = fewest_parts(self.network, images, self.largest_side, precision)
        parts = int(self.trainer.strategy.reduce(torch.tensor(parts, device=self.device), reduce_op="max"))
        if self.trainer.is_global_zero and parts > 1:
            print(f"trainer.accumulate=auto: steps of {images} images are computed in {parts} parts", flush=True)
        return parts

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        is_logged = self.global_step % _LOG_EVERY == 0
        if self.recipe.clip_gradient_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.recipe.clip_gradient_norm)
        elif is_logged:
            norm = self._gradient_norm()
        if is_logged:
            self._log({"train/gradient_norm": float(norm)})

    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if not self.trainer.is_last_batch:
            return

        # The end of the epoch. Lightning validates before it calls on_train_epoch_end, which would be too late.
        self._check_finite()
        epoch: dict[str, Any] = {
            "epoch": self.current_epoch + 1,
            "size": self.size_of_epoch(self.current_epoch),
            "train_loss": float(self.trainer.strategy.reduce(self.loss_sum / self.images_seen)),
            "learning_rate": self.current_rate,
            "images_per_second": self.images_per_second(),
            "seconds": time.perf_counter() - self.epoch_started,
        }
        self.history.append(epoch)
        warning = guessing_warning(self.history, self.global_step, self.recipe, self.guessing_loss)
        if warning is not None and not self.warned_of_guessing:
            self.warned_of_guessing = True
            if self.trainer.is_global_zero:
                warnings.warn(warning, stacklevel=2)
        images_per_second = epoch["images_per_second"]
        self._log({"train/epoch_loss": epoch["train_loss"], "train/images_per_second": images_per_second})

    # Validation.

    @property
    def tested_network(self) -> SPPNet:
        """The network that is validated and saved: the average of the weights, if there is one."""
        return self.network if self.average is None else self.average.network

    def on_validation_epoch_start(self) -> None:
        if self.average is not None and self.trainer.world_size > 1:
            self.average.share_buffers()
        self.error_counts = torch.zeros(3, dtype=torch.int64, device=self.device)
        self.validation_loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        # `forward` instead of a call, because the network is compiled for the shapes of training only.
        logits = self.tested_network.forward(images).float()
        self.error_counts += count_wrong(logits, labels)
        self.validation_loss_sum += F.cross_entropy(logits, labels, reduction="sum")

    def on_validation_epoch_end(self) -> None:
        counts = self.trainer.strategy.reduce(self.error_counts, reduce_op="sum")
        top1_wrong, top5_wrong, n = counts.tolist()
        if n != self.validation_images:
            raise RuntimeError(f"validation counted {n} images, but there are {self.validation_images}")

        loss = float(self.trainer.strategy.reduce(self.validation_loss_sum, reduce_op="sum")) / n
        seconds = time.perf_counter() - self.epoch_started
        self.history[-1].update(top1_wrong=top1_wrong, top5_wrong=top5_wrong, n=n, val_loss=loss, seconds=seconds)
        errors = {"val/top1_error_percent": 100 * top1_wrong / n, "val/top5_error_percent": 100 * top5_wrong / n}
        self._log({"val/loss": loss, **errors})
        self._stop_early()

    def _stop_early(self) -> None:
        if stop_reason(self.history, self.recipe.stop_patience) is not None:
            self.trainer.should_stop = True

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds plain values only, so that the file loads with weights_only=True. `load_network` reads "network"."""
        self._check_finite()
        checkpoint["network"] = self.network.description()
        if self.average is not None:
            self.average.save(checkpoint)
        checkpoint["precision"] = self.trainer.precision
        checkpoint["history"] = self.history
        checkpoint["epoch_so_far"] = {
            "loss_sum": self.trainer.strategy.reduce(self.loss_sum),
            "images_seen": self.images_seen,
            "seconds": time.perf_counter() - self.epoch_started,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the history, the average of the weights and the sums of the epoch under way."""
        if self.average is not None:
            self.average.load(checkpoint)
        self.history = checkpoint["history"]
        so_far = checkpoint["epoch_so_far"]
        self.loss_sum, self.images_seen = so_far["loss_sum"], so_far["images_seen"]
        self.epoch_started = time.perf_counter() - so_far["seconds"]

    # Checks and logs.

    def _check_finite(self) -> None:
        """Raises ValueError if the loss or a weight is not finite in any process. Every process has to call it."""
        subject = not_finite(self.trainer.strategy, self.parameters(), self.loss_sum)
        if subject is None:
            return
        epoch = self.current_epoch
        raise ValueError(
            f"{subject} not finite any more, at the latest in epoch {epoch + 1}, step {self.global_step}, "
            f"{size_text(self.size_of_epoch(epoch))}, rate {self.learning_rate():.3g}, "
            f"gradient norm {float(self._gradient_norm()):.3g}; checkpoints are from before; "
            f"lower recipe.learning_rate={self.recipe.learning_rate:g}"
            + (", or set recipe.clip_gradient_norm=5" if self.recipe.clip_gradient_norm is None else "")
        )

    def _gradient_norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])

    def _log(self, numbers: dict[str, float]) -> None:
        """Logs numbers at this step, with the epoch, from 1."""
        if self.logger is not None:
            self.logger.log_metrics({**numbers, "epoch": self.current_epoch + 1}, step=self.global_step)


def size_text(size: int | None) -> str:
    """Says at which size an epoch trains; None: every batch has its own."""
    return "sizes by batch" if size is None else f"size {size}"
