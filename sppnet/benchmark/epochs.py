"""Epochs of training with loading: the parts beside the whole, and ours beside a plain loop."""

import contextlib
import dataclasses
import io
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.benchmark.bench import Bench
from sppnet.benchmark.comparisons import (
    Comparison,
    Goal,
    Measurement,
    Row,
    Works,
    fastest,
    largest_parts,
    operations_of,
)
from sppnet.benchmark.loaders import (
    SIDE,
    Epoch,
    our_epoch,
    our_loader,
    our_work,
    plain_works,
    random_place,
    torchvision_epochs,
)
from sppnet.benchmark.loading_parts import loading_of
from sppnet.benchmark.timing import Ratio, Work, seconds_of, with_default_malloc
from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.classify.training import train_classifier
from sppnet.data.sources import ImageData, open_data, select_images

_STORED_BATCHES, _FILE_BATCHES = 4, 8  # of an epoch


def measurements(bench: Bench) -> Iterator[Measurement]:
    """Yields an epoch of ZF-5 beside its slower part, and one of ResNet-18 beside plain loops."""
    least = Goal(0.9, 0.9)
    yield Comparison("end to end: the slower of loading only and steps only", least, partial(end_to_end, bench))
    yield PlainEpochs(bench)


def end_to_end(bench: Bench) -> Works:
    """Four batches from a prepared store, loaded and trained on, against the slower of loading and training."""
    images, count = select_images(bench.stored, "train"), _STORED_BATCHES * bench.batch_size
    first = dataclasses.replace(images, places=images.places[:count], labels=images.labels[:count])
    load = our_epoch(our_loader(bench.stored._replace(train=first), loading_of(bench)), bench.device)
    batch = bench.random(bench.batch_size, 3, SIDE, SIDE).detach()
    train = bench.train(bench.network())

    def only_load() -> None:  # with as many threads as training has, which wait
        for _ in load():
            pass

    def only_train() -> None:
        for _ in range(_STORED_BATCHES):
            train(batch)

    def both() -> None:
        for pixels, _ in load():
            train(pixels)

    works: list[Work] = [only_load, only_train]
    return Works(both, max(works, key=lambda work: (work(), seconds_of(work))[1]))


@dataclass(frozen=True)
class PlainEpochs:
    """One epoch of ResNet-18 of timm from files: our training in its default settings beside two plain loops."""

    bench: Bench
    name: str = "epoch of ResNet-18"
    weight: float = 8.0
    model: str = "resnet18"

    def rows(self, device: str, rounds: int, seconds: float) -> list[Row]:
        """Measures an epoch of each in every round, after one to warm up. `seconds` does not count."""
        default, best = default_loop(self), best_loop(self)
        loops = [with_default_malloc(loop.epoch) for loop in (default, best)]
        for loop in loops:
            loop()
        ours: list[float] = []
        plain: list[list[float]] = []
        for _ in range(rounds):
            ours.append(self.our_seconds())
            plain.append([seconds_of(loop) for loop in loops])
        against_default, against_best = (_ratio(ours, list(times)) for times in zip(*plain, strict=True))
        goal = Goal(1.1, None).on(device)
        row = Row(f"{self.name}: a plain loop in its best settings", goal, against_best, best.setting)
        if row.is_reached is False:
            row = row._replace(bound=self._bound(against_best.ours))
        return [Row(f"{self.name}: a plain loop in its default settings", None, against_default, default.setting), row]

    def our_seconds(self) -> float:
        """Returns the seconds of the second epoch of a training run."""
        network = self.plan.build_network(self.data.classes)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            result = train_classifier(self.plan, network, self.data, Path(folder))
        return self.images / result.history[1].images_per_second

    @property
    def images(self) -> int:
        """How many an epoch has."""
        return _FILE_BATCHES * self.bench.batch_size

    @cached_property
    def root(self) -> Path:
        """The folder of images."""
        return self.bench.files(500, self.images)

    @cached_property
    def data(self) -> ImageData:
        """The same, opened."""
        return open_data("folder", root=str(self.root))

    @cached_property
    def plan(self) -> TrainingPlan:
        """Two epochs in our default settings, those of recipe=small."""
        return TrainingPlan(
            architecture="timm",
            backbone_options={"name": self.model, "pretrained": False},
            levels=[1],  # one pooling, as the plain model has
            hidden=None,
            sizes=Sizes(cycle=[SIDE]),
            source="folder",
            data_options={"root": str(self.root)},
            recipe=small_recipe(self.bench.batch_size),
            machine=Machine(workers=self.bench.workers, cache=0),  # every epoch decodes, as those of the loops do
            seed=0,
        )

    def plain_network(self) -> nn.Module:
        """Builds the model as timm does."""
        import timm

        model: nn.Module = timm.create_model(self.model, num_classes=len(self.data.classes))
        return model.to(self.bench.device).train()

    def _bound(self, seconds: float) -> str:
        """Says how much of an epoch loading alone and steps alone would take, and what takes the time of a step."""
        load = our_epoch(our_loader(self.data, loading_of(self.bench)), self.bench.device)
        network = self.plan.build_network(self.data.classes)
        network = network.to(self.bench.device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), 0.001, weight_decay=0.05)
        loop = Loop(load, network.train(), optimizer, self.bench.autocast, torch.channels_last, "")
        batch = next(load())
        loop.step(*batch)
        steps = _FILE_BATCHES * seconds_of(partial(loop.step, *batch), calls=2)
        by_itself = largest_parts({"steps": steps, "loading": seconds_of(our_work(load))}, seconds)
        return f"each by itself: {by_itself}; of a step: {operations_of(partial(loop.step, *batch))}"


def small_recipe(batch_size: int) -> Recipe:
    """Returns two epochs of recipe=small, which is the default for so few images."""
    return Recipe(
        epochs=2,
        batch_size=batch_size,
        base_batch_size=32,
        optimizer="adamw",
        learning_rate=0.001,
        momentum=0.9,
        weight_decay=0.05,
        warmup_epochs=0.4,
        label_smoothing=0.1,
        clip_gradient_norm=5.0,
        dropout=0.2,
        initialization="fan_in",
        input_mean=None,
        input_std=None,
    )


@dataclass(frozen=True, eq=False)
class Loop:
    """A plain training loop with the loss and the update of `small_recipe`."""

    batches: Epoch
    network: nn.Module  # on its device
    optimizer: torch.optim.Optimizer
    autocast: bool  # whether to bf16
    memory_format: torch.memory_format  # of network and images
    setting: str  # of its loader

    def epoch(self) -> None:
        """Trains on every batch once."""
        for images, labels in self.batches():
            self.step(images, labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Trains on one batch."""
        images = images.to(memory_format=self.memory_format)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            loss = F.cross_entropy(self.network(images), labels, label_smoothing=0.1)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()


def default_loop(epochs: PlainEpochs) -> Loop:
    """Returns the loop with everything as PyTorch and torchvision have it by themselves: float32, Pillow."""
    batches = _plain_batches(epochs)["Pillow"]
    network = epochs.plain_network()
    optimizer = torch.optim.AdamW(network.parameters(), 0.001, weight_decay=0.05)
    return Loop(batches, network, optimizer, False, torch.contiguous_format, "float32, Pillow")


def best_loop(epochs: PlainEpochs) -> Loop:
    """Returns the loop with bf16 where the hardware has it, channels-last, a fused update, and the faster loader."""
    batches, bench = _plain_batches(epochs), epochs.bench
    setting, _ = fastest(plain_works(batches))
    network = epochs.plain_network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 0.001, weight_decay=0.05, fused=True)
    precision = "bf16" if bench.autocast else "float32"
    return Loop(
        batches[setting], network, optimizer, bench.autocast, torch.channels_last, f"{precision}, fused, {setting}"
    )


def _plain_batches(epochs: PlainEpochs) -> dict[str, Epoch]:
    return torchvision_epochs(epochs.root / "train", loading_of(epochs.bench), random_place())


def _ratio(ours: list[float], reference: list[float]) -> Ratio:
    rounds = [b / a for a, b in zip(ours, reference, strict=True)]
    return Ratio(rounds, statistics.median(ours), statistics.median(reference))
