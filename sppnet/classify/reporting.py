"""What a person sees of a training run: a line per epoch, a progress bar on a terminal, pictures in TensorBoard."""

import sys
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor, nn
from torchvision.utils import make_grid

from sppnet.records import clock


def epoch_line(epoch: dict[str, Any], epochs: int, seconds_left: float) -> str:
    """One line about a finished epoch (an entry of `Classifier.history`)."""
    width = len(str(epochs))
    errors = ""
    if "n" in epoch:
        errors = (
            f"top-1 error {100 * epoch['top1_wrong'] / epoch['n']:5.2f} %  "
            f"top-5 error {100 * epoch['top5_wrong'] / epoch['n']:5.2f} %  "
        )
    return (
        f"epoch {epoch['epoch']:>{width}}/{epochs}  size {epoch['size']}  loss {epoch['train_loss']:.4f}  {errors}"
        f"{epoch['images_per_second']:,.0f} images/s  {clock(seconds_left)} left"
    )


class EpochLines(Callback):
    """Prints `epoch_line` after every epoch, above the progress bar if there is one."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        history: Any = pl_module.history
        epochs = trainer.max_epochs or 0
        # Epochs of one cycle cost differently, so the mean over the last four foresees better than the last one.
        recent = [epoch["seconds"] for epoch in history[-4:]]
        left = (epochs - len(history)) * sum(recent) / len(recent)
        Tqdm.write(epoch_line(history[-1], epochs, left), file=sys.stdout)
        sys.stdout.flush()


class ProgressBar(TQDMProgressBar):
    """A bar for the epoch under way: size, loss, images/s. `EpochLines` keeps what it said."""

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        bar.leave = False
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        size = trainer.datamodule.size_of_epoch(trainer.current_epoch)  # type: ignore[attr-defined]
        self.train_progress_bar.set_postfix({})
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, size {size}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        module: Any = pl_module
        if not module.images_seen:
            return {}
        elapsed = max(1e-9, self.train_progress_bar.format_dict["elapsed"])
        loss = float(module.loss_sum) / module.images_seen
        return {"loss": f"{loss:.3f}", "images/s": f"{module.images_seen / elapsed:,.0f}"}


class Pictures(Callback):
    """In TensorBoard: the first batch of each size as the network sees it, and the first layer's filters.

    Args:
        input_mean, input_std: of the network, to show its input in true colours.
    """

    def __init__(self, input_mean: tuple[float, ...], input_std: tuple[float, ...]) -> None:
        self.input_mean, self.input_std = torch.tensor(input_mean), torch.tensor(input_std)
        self.sizes_shown: set[int] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        images: Tensor = batch[0]
        size = images.shape[-1]
        # Random sizes would add a picture every epoch; three show what there is to see.
        if batch_idx == 0 and size not in self.sizes_shown and len(self.sizes_shown) < 3:
            self.sizes_shown.add(size)
            grid = make_grid(self._true_colors(images[:16]), nrow=4)
            self._add(trainer, f"batch as the network sees it/{size} x {size}", grid)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first = next((m for m in pl_module.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
        if first is not None:
            filters = first.weight.detach().float().cpu()
            self._add(
                trainer,
                "filters of the first layer",
                make_grid(filters, nrow=12, normalize=True, scale_each=True),
            )

    def _true_colors(self, images: Tensor) -> Tensor:
        pixels = images.float().cpu() * self.input_std[:, None, None] + self.input_mean[:, None, None]
        return (pixels / 255).clamp(0, 1)

    def _add(self, trainer: Trainer, name: str, picture: Tensor) -> None:
        writer: Any = getattr(trainer.logger, "experiment", None)
        if trainer.is_global_zero and writer is not None:
            writer.add_image(name, picture, trainer.global_step)
