"""What TensorBoard shows of a training run besides its numbers: images with labels, filters, settings, the result."""

import shlex
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchvision.utils import make_grid

from sppnet.classify.best import result_epoch
from sppnet.classify.classifier import Classifier
from sppnet.runtime.names import printable

_SHOWN = 16  # images of a batch
_LINE, _FONT_SIZE = 18, 12  # height in pixels of the line below an image, and of its letters


class RunLog(Callback):
    """Logs the first batch of each size with its labels, the first layer's filters, the settings, and the result.

    Args:
        run: the run directory, whose config.yaml is shown.
        command: the words of the command line that started the run; None if it was started otherwise.
        settings: of the run, with dotted keys; TensorBoard's tab HPARAMS sets them beside the result.
    """

    def __init__(self, run: Path, command: list[str] | None, settings: dict[str, Any]) -> None:
        self.run, self.command, self.settings = run, command, settings
        self.sizes_shown: set[int] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = self.run / "config.yaml"
        if config.is_file():
            self._text(trainer, "configuration", config.read_text(encoding="utf-8"))
        if self.command is not None:
            self._text(trainer, "command", shlex.join(self.command))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        size = images.shape[-1]
        # At most three sizes: random ones would add an image in nearly every epoch.
        if batch_idx == 0 and size not in self.sizes_shown and len(self.sizes_shown) < 3:
            self.sizes_shown.add(size)
            network = cast(Classifier, pl_module).network
            pixels = true_colors(images[:_SHOWN], network.input_mean, network.input_std)
            names = network.classes or tuple(map(str, range(network.num_classes)))
            texts = [names[label] for label in labels[:_SHOWN].tolist()]
            grid = make_grid(with_texts(pixels, texts), nrow=4, pad_value=1)
            self._image(trainer, f"batch as the network sees it/{size} x {size}", grid)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first = next((m for m in pl_module.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
        if first is not None:
            filters = first.weight.detach().float().cpu()
            grid = make_grid(filters, nrow=12, normalize=True, scale_each=True)
            self._image(trainer, "filters of the first layer", grid)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        classifier = cast(Classifier, pl_module)
        epoch = result_epoch(classifier.history, classifier.recipe.epochs, classifier.recipe.stop_patience)
        if trainer.logger is None or epoch is None:
            return
        last = classifier.history[epoch]
        result = {
            "result/top1_error_percent": 100 * last["top1_wrong"] / last["n"],
            "result/top5_error_percent": 100 * last["top5_wrong"] / last["n"],
            "result/val_loss": last["val_loss"],
        }
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.log_hyperparams(self.settings, result)
        else:
            trainer.logger.log_hyperparams(self.settings)
            trainer.logger.log_metrics(result, step=trainer.global_step)

    def _text(self, trainer: Trainer, name: str, text: str) -> None:
        writer = _writer(trainer)
        if writer is not None:
            writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), trainer.global_step)

    def _image(self, trainer: Trainer, name: str, image: Tensor) -> None:
        writer = _writer(trainer)
        if writer is not None:
            writer.add_image(name, image, trainer.global_step)


def _writer(trainer: Trainer) -> Any:
    """Returns the writer of TensorBoard in the first process, None in others and with another logger or none."""
    is_shown = trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)
    return trainer.logger.experiment if is_shown else None  # type: ignore[union-attr]


def true_colors(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Undoes the scaling of the network's input: (N, 3, s, s) -> the same shape, in 0..1."""
    pixels = images.float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (pixels / 255).clamp(0, 1)


def with_texts(images: Tensor, texts: list[str]) -> Tensor:
    """Adds a line of text below every image: (N, 3, s, s) in 0..1 -> (N, 3, s + 18, s)."""
    font = ImageFont.load_default(_FONT_SIZE)
    shown = []
    for image, text in zip(images, texts, strict=True):
        line = Image.new("RGB", (image.shape[-1], _LINE), "white")
        ImageDraw.Draw(line).text((3, 1), printable(text), "black", font)
        pixels = torch.from_numpy(np.asarray(line) / np.float32(255)).permute(2, 0, 1)
        shown.append(torch.cat([image, pixels], dim=1))
    return torch.stack(shown)
