"""The plan of a training run: everything that decides it, typed and checked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sppnet.backbones import build_backbone, without_weights
from sppnet.classify.advice import check_validation
from sppnet.classify.machine import Machine
from sppnet.classify.optimizers import check_optimizer
from sppnet.classify.rates import check_schedule
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes, check_sizes_fit
from sppnet.data.sources import ImageData, open_data
from sppnet.geometry import check_levels
from sppnet.network import IMAGENET_MEAN, IMAGENET_STD, SPPNet, check_settings, load_network, take_weights
from sppnet.runtime.run_directory import sizes_in_words
from sppnet.timm_backbone import pretrained_statistics


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What is trained, on which data, how, and on which machine.

    Making a plan opens no data, makes no weights and writes nothing.

    Args:
        architecture: a name of `sppnet.backbones.BACKBONES`.
        backbone_options: keyword arguments of that backbone.
        levels: of the pyramid; None for the paper's baseline without one.
        hidden: outputs of fc6 and fc7; None for a linear classifier on the pyramid.
        sizes: the sides in pixels of the epochs or of the batches.
        source: a name of `sppnet.data.sources.DATA_SOURCES`.
        data_options: keyword arguments of that source.
        seed: of the weights and of everything random in training, from 0 to 2**63 - 1.
        initial_weights: a network with the same backbone, as `sppnet.network.load_network` takes it, to start from;
            None draws all weights.
        logger: a name of `sppnet.classify.loggers.LOGGERS`.
        logger_options: keyword arguments of that logger.

    Raises ValueError for values out of range, and for a network that cannot train at one of the sizes.
    """

    architecture: str
    backbone_options: dict[str, Any]
    levels: list[int] | None
    hidden: int | None
    sizes: Sizes
    source: str
    data_options: dict[str, Any]
    recipe: Recipe
    machine: Machine
    seed: int
    initial_weights: str | None = None
    logger: str = "tensorboard"
    logger_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = self.recipe
        check_validation(recipe, self.machine)
        check_schedule(recipe)
        check_optimizer(recipe)
        check_settings(self.hidden, recipe.dropout, *self.input_statistics, section="recipe.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: must be from 0 to 2**63 - 1")
        if self.levels is not None:
            check_levels(self.levels)

        # On the meta device building takes neither time nor memory. Pretrained weights are not downloaded.
        with torch.device("meta"):
            backbone = build_backbone(self.architecture, **without_weights(self.backbone_options))
        check_sizes_fit(backbone, self.levels, self.sizes.all)

    def settings(self) -> dict[str, Any]:
        """Returns the settings that decide the result, as text and numbers with dotted keys."""
        recipe = {f"recipe.{key}": value for key, value in asdict(self.recipe).items()}
        backbone = {f"backbone.{key}": value for key, value in self.backbone_options.items()}
        sizes = sizes_in_words(asdict(self.sizes))
        own = {"pooling.levels": self.levels, "hidden": self.hidden, "sizes": sizes, "data": self.source}
        values = {"backbone": self.architecture, **backbone, **own, **recipe, "seed": self.seed}
        return {key: value if isinstance(value, (int, float)) else str(value) for key, value in values.items()}

    @property
    def crop_side(self) -> int:
        """Side of the crops in pixels. Training resizes them to its sizes, validation does not."""
        return self.sizes.largest

    @property
    def input_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation per channel of the pixels 0..255 that become network input."""
        if self.architecture == "timm" and None in (self.recipe.input_mean, self.recipe.input_std):
            return self._given_statistics(*pretrained_statistics(self.backbone_options["name"]))
        return self._given_statistics(IMAGENET_MEAN, IMAGENET_STD)

    def _given_statistics(self, mean: Sequence[float], std: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        """Returns the mean and the standard deviation that the recipe gives, each of these where it gives none."""
        own_mean, own_std = self.recipe.input_mean, self.recipe.input_std
        return mean if own_mean is None else own_mean, std if own_std is None else own_std

    def open_data(self) -> ImageData:
        """Opens the data set. Raises as `sppnet.data.sources.open_data`."""
        return open_data(self.source, **self.data_options)

    def build_network(self, classes: Sequence[str]) -> SPPNet:
        """Returns a new network for these classes, its weights drawn by the seed or taken from `initial_weights`.

        Raises what `load_network` raises, and ValueError if `initial_weights` has another backbone.
        """
        with self._naming_initial_weights():
            source = None if self.initial_weights is None else load_network(self.initial_weights)
        torch.manual_seed(self.seed)
        mean, std = self.input_statistics
        if source is not None:
            mean, std = self._given_statistics(source.input_mean, source.input_std)
        network = SPPNet(
            build_backbone(self.architecture, **self.backbone_options),
            self.levels,
            len(classes),
            hidden=self.hidden,
            dropout=self.recipe.dropout,
            initialization=self.recipe.initialization,
            input_mean=mean,
            input_std=std,
            classes=classes,
            input_side=self.crop_side if self.levels is None else None,
        )
        if source is not None:
            with self._naming_initial_weights():
                take_weights(network, source)
        return network

    @contextmanager
    def _naming_initial_weights(self) -> Iterator[None]:
        """Puts key and value before the messages of errors."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix(f"{self.initial_weights}: ")
            error.args = (f"initial_weights={self.initial_weights}: {reason}",)
            raise
