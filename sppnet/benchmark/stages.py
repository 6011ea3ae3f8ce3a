"""Every stage of training and testing by itself, in images/s, and what follows from that."""

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
import torch.nn.functional as F
from torch import Tensor

from sppnet.benchmark.timing import rate
from sppnet.classify.datamodule import ClassificationData, TrainingCrops
from sppnet.classify.evaluator import Hardware
from sppnet.classify.recipe import Machine, Recipe
from sppnet.classify.scorer import Scorer, ViewInputs
from sppnet.classify.training import train_classifier
from sppnet.classify.views import ViewProtocol
from sppnet.data.images import decode_image
from sppnet.data.sources import ImageData, LabelledImages, SelectedImages
from sppnet.network import SPPNet
from sppnet.runtime.machine import keep_freed_memory

DISTINCT_IMAGES = 256  # that a stage on its own goes through


class Stage(NamedTuple):
    """One stage: its rate, of all processes that would do it together."""

    name: str
    images_per_second: float
    where: str  # "one core", "2 workers", the device
    remark: str = ""
    testing: bool = False  # no part of training


LOADER, FORWARD = "loader", "forward"


def input_name(size: int) -> str:
    return f"mirror, colour, resize to {size}"


def step_name(size: int) -> str:
    return f"training step at {size}"


def total_name(size: int) -> str:
    return f"end to end at {size}"


class Training(NamedTuple):
    """All that a run is put together from; the parts of scripts/train.py's configuration."""

    build_network: Callable[[], SPPNet]
    data: ImageData
    recipe: Recipe
    machine: Machine
    sizes: list[int]  # of a cycle of epochs
    crop_side: int
    seed: int


def loading_stages(training: Training, workers: int, seconds: float) -> list[Stage]:
    """From the file to the batch in memory."""
    images = training.data.train
    some = np.random.default_rng(0).permutation(len(images))[:DISTINCT_IMAGES].tolist()
    files = [(images.read(i), images.name(i)) for i in some]
    crops = TrainingCrops(images, side=training.crop_side, seed=0)
    module = _module(training, workers)

    def one_by_one(function: Callable[[Any], Any], items: Sequence[Any]) -> float:
        around = itertools.cycle(items)
        return rate(lambda: function(next(around)), 1, seconds)

    stages = [
        Stage("read files", one_by_one(images.read, some), "one core", "from the page cache after the first"),
        Stage("decode", one_by_one(lambda file: decode_image(*file), files), "one core"),
        Stage("read, decode, resize, crop", one_by_one(lambda i: crops[0, i], some), "one core"),
    ]
    loader = module.train_dataloader()
    batches = _endless(loader)
    size = len(next(batches)["label"])
    stages.append(Stage(LOADER, rate(lambda: next(batches), size, seconds), f"{workers} workers"))
    return stages


def device_stages(
    training: Training, device: torch.device, autocast: bool, compiled: bool, seconds: float
) -> list[Stage]:
    """From the batch in memory to the step of the optimizer, one device."""
    module = _module(training, 0, compiled)
    batch = next(iter(module.train_dataloader()))
    count = len(batch["label"])
    name = device.type
    stages = []
    if name == "cpu":
        keep_freed_memory()  # as training does
    if name == "cuda":
        pinned = batch["image"].pin_memory()
        stages.append(Stage("copy to the device", rate(lambda: pinned.to(device), count, seconds), name))
    batch = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
    network = training.build_network().to(device).to(memory_format=torch.channels_last)
    if compiled:
        network.compile(dynamic=False)
    optimizer = torch.optim.SGD(network.parameters(), training.recipe.learning_rate, 0.9, fused=True)
    color = batch["color"] if training.recipe.color else None

    def training_input(size: int) -> Tensor:
        mean, std = network.input_mean, network.input_std
        return module.training_input(batch["image"], batch["mirrored"], color, size, mean, std)

    def step(images: Tensor) -> None:
        with torch.autocast(name, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(network(images), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for size in dict.fromkeys(training.sizes):
        stages.append(Stage(input_name(size), rate(partial(training_input, size), count, seconds), name))
    for size in dict.fromkeys(training.sizes):
        work = partial(step, training_input(size))
        stages.append(Stage(step_name(size), rate(work, count, seconds), name))
    network.eval()
    images = training_input(training.crop_side)

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(name, torch.bfloat16, enabled=autocast):
            network.forward(images)

    stages.append(Stage(FORWARD, rate(forward, count, seconds), name, testing=True))
    return stages


def view_stages(
    network: SPPNet, training: Training, protocols: dict[str, ViewProtocol], hardware: Hardware, seconds: float
) -> list[Stage]:
    """Testing by each protocol that suits the network, decoding aside."""
    stages = []
    for name, protocol in protocols.items():
        if protocol.unsuited_to(network):
            continue
        scorer = Scorer(network, protocol, pixels=hardware.pixels, autocast=hardware.autocast)
        inputs = ViewInputs(training.data.val, protocol)[0]
        batch = [inputs] * min(64, scorer.images_per_pass(inputs))
        work = partial(scorer, batch)
        stages.append(Stage(f"test by {name}", rate(work, len(batch), seconds), hardware.device, testing=True))
    return stages


def end_to_end(training: Training, expected: float, seconds: float) -> list[Stage]:
    """Whole epochs of a real training on as many images as `expected` images/s get through in about `seconds`.

    Every size three times; the first time, in which it is compiled and caches fill, does not count.
    """
    images, batch_size = training.data.train, training.recipe.batch_size
    count = min(len(images), batch_size * max(4, round(expected * seconds / batch_size)))
    data = ImageData(_some(images, count), _some(training.data.val, 1), images.classes)
    sizes = list(dict.fromkeys(training.sizes))
    recipe = dataclasses.replace(training.recipe, epochs=3 * len(sizes), warmup_epochs=0, plateau_patience=None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train_classifier(
            training.build_network(),
            data,
            recipe=recipe,
            machine=training.machine,
            crop_side=training.crop_side,
            sizes={"cycle": sizes},
            seed=training.seed,
            data_name="benchmark",
            run=Path(folder),
        )
    epochs = result["history"][len(sizes) :]
    rates = {size: [e["images_per_second"] for e in epochs if e["size"] == size] for size in sizes}
    remark = f"epochs of {count:,} images, everything included"
    return [Stage(total_name(size), statistics.median(rates[size]), "this machine", remark) for size in sizes]


def _some(images: LabelledImages, count: int) -> SelectedImages:
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return SelectedImages((images,), np.stack([0 * chosen, chosen], axis=1), images.labels[chosen], images.classes)


def _module(training: Training, workers: int, compiled: bool = False) -> ClassificationData:
    return ClassificationData(
        training.data,
        batch_size=training.recipe.batch_size,
        crop_side=training.crop_side,
        size_of_epoch=lambda epoch: training.sizes[epoch % len(training.sizes)],
        input_mean=training.recipe.input_mean,
        input_std=training.recipe.input_std,
        color=training.recipe.color,
        seed=training.seed,
        workers=workers,
        compiled=compiled,
    )


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
