"""Measures every stage of training and testing by itself, and whole epochs, in images/s."""

import contextlib
import dataclasses
import io
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.benchmark.bench import training_step
from sppnet.benchmark.timing import rate
from sppnet.classify.augmentation import Augmentation
from sppnet.classify.datamodule import ClassificationData
from sppnet.classify.loading import TrainingCrops
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.schedules import Sizes
from sppnet.classify.scorer import Scorer
from sppnet.classify.training import caching_of, train_classifier
from sppnet.classify.view_inputs import ViewInputs
from sppnet.classify.views import ViewProtocol
from sppnet.data.images import decode_image
from sppnet.data.inputs import ImageInputs, images_per_pass
from sppnet.data.sources import ImageData, LabelledImages, SelectedImages
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.machine import keep_freed_memory

_DISTINCT_IMAGES = 256  # that a single stage repeats


class Stage(NamedTuple):
    """One stage with its rate, that of all processes that would do it together."""

    name: str
    images_per_second: float
    where: str  # "one core", "2 workers" or the device
    remark: str = ""
    testing: bool = False  # not a part of a training step


LOADER, FORWARD = "loader", "forward"


def input_name(size: int) -> str:
    """Names the stage that makes network input of this size in pixels."""
    return f"mirror, colour, resize to {size}"


def step_name(size: int) -> str:
    """Names the training step at this size."""
    return f"training step at {size}"


def total_name(size: int) -> str:
    """Names the end-to-end training at this size."""
    return f"end to end at {size}"


class TrainingSetup(NamedTuple):
    """The training run that is measured."""

    plan: TrainingPlan
    data: ImageData

    @property
    def sizes(self) -> list[int]:
        """Sides in pixels of a cycle of epochs; for random sizes, the smallest and the largest."""
        return self.plan.sizes.cycle or [self.plan.sizes.smallest, self.plan.sizes.largest]

    def build_network(self) -> SPPNet:
        """Builds a new network for the classes of the data."""
        return self.plan.build_network(self.data.classes)


def loading_stages(setup: TrainingSetup, workers: int, seconds: float) -> list[Stage]:
    """Measures the stages from the file to the batch in memory, and the loader, which does them all."""
    images = setup.data.train
    indices = np.random.default_rng(0).permutation(len(images))[:_DISTINCT_IMAGES].tolist()
    files = [(images.read(i), images.name(i)) for i in indices]
    crops = TrainingCrops(images, side=setup.plan.crop_side, seed=0, augmentation=_augmentation(setup))

    def one_by_one(function: Callable[[Any], Any], items: Sequence[Any]) -> float:
        cycle = itertools.cycle(items)
        return rate(lambda: function(next(cycle)), 1, seconds)

    stages = [
        Stage("read files", one_by_one(images.read, indices), "one core", "from the page cache after the first"),
        Stage("decode", one_by_one(lambda file: decode_image(*file), files), "one core"),
        Stage("read, decode, crop, augment", one_by_one(lambda i: crops[0, i], indices), "one core"),
    ]
    batches = _endless(_data_module(setup, workers).train_dataloader())
    batch_size = len(next(batches)["label"])

    # As many batches at once as workers have ready: one alone may come at once, or only after a long wait.
    ready = 2 * max(1, workers)
    loaded = rate(lambda: [next(batches) for _ in range(ready)], ready * batch_size, seconds)
    stages.append(Stage(LOADER, loaded, f"{workers} workers"))
    return stages


def device_stages(
    setup: TrainingSetup, device: torch.device, autocast: bool, compiled: bool, seconds: float
) -> list[Stage]:
    """Measures the stages from the batch in memory to the step of the optimizer, on one device."""
    data_module = _data_module(setup, 0, compiled)
    batch = next(iter(data_module.train_dataloader()))
    count, name = len(batch["label"]), device.type
    stages = []
    if name == "cpu":
        keep_freed_memory()  # as training does
    if name == "cuda":
        pinned = batch["image"].pin_memory()
        stages.append(Stage("copy to the device", rate(lambda: pinned.to(device), count, seconds), name))

    batch = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
    network = setup.build_network().to(device).to(memory_format=torch.channels_last)
    if compiled:
        network.compile(dynamic=False)
    color = batch["color"] if setup.plan.recipe.color else None

    def training_input(size: int) -> Tensor:
        mean, std = network.input_mean, network.input_std
        return data_module.training_input(batch["image"], batch["mirrored"], color, size, mean, std)

    sizes = list(dict.fromkeys(setup.sizes))
    stages += [Stage(input_name(size), rate(partial(training_input, size), count, seconds), name) for size in sizes]
    step = training_step(network, batch["label"], autocast, setup.plan.recipe.learning_rate)
    for size in sizes:
        work = partial(step, training_input(size))
        stages.append(Stage(step_name(size), rate(work, count, seconds), name))

    network.eval()
    work = partial(_validate, network, training_input(setup.plan.crop_side), autocast)
    stages.append(Stage(FORWARD, rate(work, count, seconds), name, testing=True))
    return stages


@torch.no_grad()
def _validate(network: SPPNet, images: Tensor, autocast: bool) -> None:
    """Runs a forward pass as validation does: not compiled, which is for training's sizes only."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        network.forward(images)


def view_stages(
    network: SPPNet, setup: TrainingSetup, protocols: dict[str, ViewProtocol], hardware: Hardware, seconds: float
) -> list[Stage]:
    """Measures testing by each protocol that suits the network, without decoding."""
    stages = []
    for name, protocol in protocols.items():
        if protocol.unsuited_to(network):
            continue
        scorer = Scorer(network, protocol, pixels=hardware.pixels, autocast=hardware.autocast)
        inputs = ImageInputs(setup.data.val, ViewInputs(protocol))[0]
        batch = [inputs] * min(64, images_per_pass(inputs, scorer.pixels))
        work = partial(scorer, batch)
        stages.append(Stage(f"test by {name}", rate(work, len(batch), seconds), hardware.device, testing=True))
    return stages


def end_to_end(setup: TrainingSetup, expected: float, seconds: float) -> list[Stage]:
    """Measures whole epochs of a real training run, three at every size.

    The first epoch at a size does not count: it compiles and fills caches.

    Args:
        expected: images/s; an epoch has as many images as this rate processes in about `seconds`.
    """
    images, batch_size = setup.data.train, setup.plan.recipe.batch_size
    count = min(len(images), batch_size * max(4, round(expected * seconds / batch_size)))
    data = ImageData(_random_images(images, count), _random_images(setup.data.val, 1), images.classes)
    sizes = list(dict.fromkeys(setup.sizes))
    recipe = dataclasses.replace(setup.plan.recipe, epochs=3 * len(sizes), warmup_epochs=0, plateau_patience=None)
    # Some of the images would fit where all do not.
    caching = caching_of(setup.plan, setup.data, processes=1)
    machine = dataclasses.replace(setup.plan.machine, cache=setup.plan.machine.cache if caching.expected else 0)
    plan = dataclasses.replace(setup.plan, sizes=Sizes(cycle=sizes), recipe=recipe, machine=machine)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train_classifier(plan, setup.build_network(), data, Path(folder))

    epochs = result.history[len(sizes) :]
    rates = {size: [epoch.images_per_second for epoch in epochs if epoch.size == size] for size in sizes}
    remark = f"epochs of {count:,} images, everything included"
    return [Stage(total_name(size), statistics.median(rates[size]), "this machine", remark) for size in sizes]


def _random_images(images: LabelledImages, count: int) -> SelectedImages:
    """Selects `count` images at random, the same ones every time."""
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return SelectedImages((images,), np.stack([0 * chosen, chosen], axis=1), images.labels[chosen], images.classes)


def _data_module(setup: TrainingSetup, workers: int, compiled: bool = False) -> ClassificationData:
    return ClassificationData(
        setup.data,
        batch_size=setup.plan.recipe.batch_size,
        crop_side=setup.plan.crop_side,
        size_of_step=lambda epoch, step: setup.sizes[epoch % len(setup.sizes)],
        input_mean=setup.plan.input_statistics[0],
        input_std=setup.plan.input_statistics[1],
        color=setup.plan.recipe.color,
        mirror=setup.plan.recipe.mirror,
        augmentation=_augmentation(setup),
        balanced=setup.plan.recipe.balanced,
        seed=setup.plan.seed,
        workers=workers,
        compiled=compiled,
    )


def _augmentation(setup: TrainingSetup) -> Augmentation | None:
    return Augmentation.of(setup.plan.recipe, side=setup.plan.crop_side, mean=setup.plan.input_statistics[0])


def _endless(loader: Any) -> Iterator[Any]:
    """Yields batches, epoch after epoch."""
    while True:
        yield from loader
