"""Ours against what a user would write, in one process, in turn."""

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones import build_backbone
from sppnet.benchmark.references import PlainPyramid, plain_loader, plain_zf5
from sppnet.benchmark.timing import Work, seconds_of
from sppnet.classify.datamodule import ClassificationData
from sppnet.classify.evaluator import Hardware
from sppnet.classify.scorer import Inputs, Scorer
from sppnet.classify.views import POSITIONS, ViewProtocol, windows_at
from sppnet.data.prepare import prepare
from sppnet.data.shards import Settings
from sppnet.data.sources import ImageData, open_data, select_images
from sppnet.network import IMAGENET_MEAN, SPPNet
from sppnet.normalization import LocalResponseNorm
from sppnet.pyramid import SpatialPyramidPool
from sppnet.runtime.machine import bf16_is_fast, core_count, keep_freed_memory

CLASSES = 1000
STD = (1.0, 1.0, 1.0)
SIX_SCALES = [224, 256, 300, 360, 448, 560]  # arXiv:1406.4729v4, §3.1.5


class Goal(NamedTuple):
    """What a ratio should be at least on each kind of device; None: not measured there."""

    cpu: float | None
    gpu: float | None


class Comparison(NamedTuple):
    """A row: `works()` gives ours and the reference, which do the same."""

    name: str
    goal: Goal
    works: Callable[[], tuple[Work, Work]]


class SideBySide:
    """The comparisons on one device; a context, in which the photographs for loading exist.

    Args:
        device: "cpu" or "cuda".
        images: of a training batch; None: 32 on a CPU, 256 on a GPU.
        photographs: how many to load; None: 16 batches.
        hidden: neurons of fc6 and of fc7.
    """

    def __init__(
        self, device: str, images: int | None = None, photographs: int | None = None, hidden: int = 4096
    ) -> None:
        self.device = torch.device(device)
        self.images = images or (256 if device == "cuda" else 32)
        self.photographs = photographs or 16 * self.images
        self.hidden = hidden
        self.autocast = bf16_is_fast(device)
        self.workers = core_count()

    def __enter__(self) -> "SideBySide":
        self._folder = tempfile.TemporaryDirectory()
        if self.device.type == "cpu":
            keep_freed_memory()  # as training and testing do
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
        keep_freed_memory(False)

    def comparisons(self) -> Iterator[Comparison]:
        """In the order of the work of a training step, then of loading, then of testing."""
        yield Comparison("local response normalization: torch's", Goal(5, 3), self.normalizations)
        yield Comparison("pyramid 6, 3, 2, 1: four adaptive poolings", Goal(1.5, 1.5), self.pyramids)
        yield Comparison("training step of ZF-5: plain modules", Goal(3.2, 2), self.steps)
        yield Comparison("training step of ZF-5: without a pyramid", Goal(1 / 1.15, 1 / 1.08), self.pyramid_costs)
        yield Comparison("loading from files: ImageFolder and Pillow", Goal(2, None), self.loaders)
        yield Comparison("loading from a prepared store: the same", Goal(4, None), self.prepared_loaders)
        yield Comparison("end to end: the slower of loading and steps alone", Goal(0.9, 0.9), self.end_to_end)
        yield Comparison("ten views on maps: ten crops", Goal(2, 1.5), self.ten_views)
        yield Comparison("96 views on maps: 96 crops", Goal(1.7, 1.5), self.many_views)

    def normalizations(self) -> tuple[Work, Work]:
        maps = self._random(self.images, 96, 111, 111)
        ours: nn.Module = LocalResponseNorm()
        if self.device.type == "cuda":
            ours.compile()
        return _there_and_back(ours, maps), _there_and_back(nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), maps)

    def pyramids(self) -> tuple[Work, Work]:
        maps = self._random(4 * self.images, 256, 13, 13)
        return _there_and_back(SpatialPyramidPool(), maps), _there_and_back(PlainPyramid(), maps)

    def steps(self) -> tuple[Work, Work]:
        reference = plain_zf5(CLASSES, hidden=self.hidden)
        reference_autocast = self.device.type == "cuda"
        if reference_autocast:
            reference = reference.to(memory_format=torch.channels_last)
        return self._step(self._network((6, 3, 2, 1))), _as_it_starts(self._step(reference, reference_autocast))

    def pyramid_costs(self) -> tuple[Work, Work]:
        return self._step(self._network(None)), self._step(self._network((6, 3, 2, 1)))

    @cached_property
    def files(self) -> Path:
        return draw_photographs(Path(self._folder.name, "photographs"), self.photographs)

    @cached_property
    def stored(self) -> ImageData:
        store = Path(self._folder.name, "store")
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(open_data("folder", root=str(self.files)), store, Settings(256, 95), workers=self.workers)
        return open_data("prepared", root=str(store))

    def loaders(self) -> tuple[Work, Work]:
        files = open_data("folder", root=str(self.files))
        return _on_one_thread(self._load(files)), _as_it_starts(self._load_plainly())

    def prepared_loaders(self) -> tuple[Work, Work]:
        return _on_one_thread(self._load(self.stored)), _as_it_starts(self._load_plainly())

    def end_to_end(self) -> tuple[Work, Work]:
        """Four batches from a prepared store: loaded and trained on, against the slower of the two alone."""
        some = select_images(self.stored, "train")
        some = dataclasses.replace(some, places=some.places[: 4 * self.images], labels=some.labels[: 4 * self.images])
        data = self.stored._replace(train=some)
        images = self._random(self.images, 3, 224, 224).detach()
        train = self._train(self._network((6, 3, 2, 1)))
        steps: Work = lambda: [train(images) for _ in range(4)]  # noqa: E731
        load = self._load(data)
        slower = max((load, steps), key=lambda work: (work(), seconds_of(work))[1])
        return self._load(data, train), slower

    def _load(self, data: ImageData, then: Callable[[Tensor], None] | None = None) -> Work:
        """An epoch up to the input of the network, by ours."""
        module = ClassificationData(
            data,
            batch_size=self.images,
            crop_side=224,
            size_of_epoch=lambda epoch: 224,
            input_mean=IMAGENET_MEAN,
            input_std=STD,
            color=False,
            seed=0,
            workers=self.workers,
            compiled=self.device.type == "cuda",
        )
        loader = module.train_dataloader()

        def epoch() -> None:
            for batch in loader:
                image, mirrored = (batch[key].to(self.device, non_blocking=True) for key in ("image", "mirrored"))
                images = module.training_input(image, mirrored, None, 224, IMAGENET_MEAN, STD)
                if then is not None:
                    then(images)

        return epoch

    def _load_plainly(self) -> Work:
        loader = plain_loader(
            self.files / "train", batch_size=self.images, workers=self.workers, mean=IMAGENET_MEAN, std=STD
        )

        def epoch() -> None:
            for images, _ in loader:
                images.to(self.device, non_blocking=True)

        return epoch

    def ten_views(self) -> tuple[Work, Work]:
        return self._views([256], list(POSITIONS)[:5])

    def many_views(self) -> tuple[Work, Work]:
        return self._views(SIX_SCALES, list(POSITIONS))

    def _views(self, scales: list[int], positions: list[str]) -> tuple[Work, Work]:
        """Windows on maps, and crops, of 4:3 images that are already in memory at every scale."""
        network = self._network((6, 3, 2, 1)).eval()
        random = np.random.default_rng(0)
        whole = [
            torch.from_numpy(random.integers(0, 256, (scale, round(scale * 4 / 3), 3), np.uint8)) for scale in scales
        ]
        autocast = torch.bfloat16 if self.autocast else None
        works, images = [], 0
        for maps in (True, False):
            protocol = ViewProtocol(scales=scales, positions=positions, mirrored=True, maps=maps)
            scorer = Scorer(network, protocol, pixels=Hardware(accelerator=self.device.type).pixels, autocast=autocast)
            inputs = Inputs(0, None, whole) if maps else Inputs(0, _crops(protocol, whole), [])
            images = images or min(self.images, scorer.images_per_pass(inputs))  # as many on either side
            works.append(partial(_score, scorer, [inputs] * images))
        return works[0], works[1]

    def _random(self, *shape: int) -> Tensor:
        maps = torch.rand(*shape, device=self.device).to(memory_format=torch.channels_last)
        return maps.requires_grad_()

    def _network(self, levels: tuple[int, ...] | None) -> SPPNet:
        network = SPPNet(build_backbone("zf5", normalization="across_channels"), levels, CLASSES, hidden=self.hidden)
        network.to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cuda":
            network.compile(dynamic=False)
        return network

    def _step(self, network: nn.Module, autocast: bool | None = None) -> Work:
        images = self._random(self.images, 3, 224, 224).detach()
        if not isinstance(network, SPPNet) and not autocast:
            images = images.contiguous()
        return partial(self._train(network, autocast), images)

    def _train(self, network: nn.Module, autocast: bool | None = None) -> Callable[[Tensor], None]:
        """A training step on a batch."""
        autocast = self.autocast if autocast is None else autocast
        network = network.to(self.device).train()
        optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=5e-4, fused=True)
        labels = torch.arange(self.images, device=self.device)

        def step(images: Tensor) -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step


def _on_one_thread(work: Work) -> Work:
    """Workers have the cores; threads that wait for each other in this process would take them away."""

    def on_one_thread() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            work()
        finally:
            torch.set_num_threads(threads)

    return on_one_thread


def _as_it_starts(work: Work) -> Work:
    """With malloc as a process finds it."""

    def as_it_starts() -> None:
        keep_freed_memory(False)
        work()
        keep_freed_memory()

    return as_it_starts


def _there_and_back(module: nn.Module, maps: Tensor) -> Work:
    gradient = torch.ones_like(module(maps))

    def work() -> None:
        torch.autograd.grad(module(maps), maps, gradient)

    return work


def _score(scorer: Scorer, batch: list[Inputs]) -> None:
    """In passes as large as those of a test."""
    size = scorer.images_per_pass(batch[0])
    for start in range(0, len(batch), size):
        scorer(batch[start : start + size])


def _crops(protocol: ViewProtocol, whole: list[Tensor]) -> Tensor:
    crops = []
    for image in whole:
        crops += [image[y0:y1, x0:x1] for x0, y0, x1, y1 in windows_at(protocol, *image.shape[:2])]
    return torch.stack(crops)


def draw_photographs(root: Path, count: int, height: int = 375, width: int = 500) -> Path:
    """A folder of `count` JPEG files in two classes, and two to validate, that cost as much to read as photographs.

    Their spectrum falls as 1/f, and brightness varies more than colour.
    """
    random = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    for i in range(count + 2):
        noise = np.fft.rfft2(random.normal(size=(4, height, width)))
        layers = np.fft.irfft2(noise * falloff, (height, width))
        picture = layers[0] + 0.2 * layers[1:]
        pixels = (127 + 50 * picture / picture.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        _write_photograph(root, i, count, Image.fromarray(pixels))
    return root


def _write_photograph(root: Path, i: int, count: int, image: Image.Image) -> None:
    folder = root / ("val" if i >= count else "train") / f"class{i % 2}"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{i}.jpg", quality=90)
