"""Our implementations against plain PyTorch, timed alternately in one process."""

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
from torch import Tensor, nn

from sppnet.backbones import build_backbone
from sppnet.benchmark import exported, transfer
from sppnet.benchmark.images import draw_images
from sppnet.benchmark.references import PlainPyramid, plain_loader, plain_zf5
from sppnet.benchmark.timing import Work, forward_backward, on_one_thread, seconds_of, with_default_malloc
from sppnet.classify.datamodule import ClassificationData
from sppnet.classify.scorer import Scorer
from sppnet.classify.views import ViewProtocol, windows_at
from sppnet.data.inputs import Inputs, images_per_pass
from sppnet.data.prepare import prepare
from sppnet.data.shards import Settings
from sppnet.data.sources import ImageData, open_data, select_images
from sppnet.geometry import POSITIONS
from sppnet.network import IMAGENET_MEAN, SPPNet
from sppnet.normalization import LocalResponseNorm
from sppnet.pyramid import SpatialPyramidPool
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.machine import bf16_is_fast, core_count, keep_freed_memory

CLASSES = 1000
_STD = (1.0, 1.0, 1.0)
_SIX_SCALES = [224, 256, 300, 360, 448, 560]  # arXiv:1406.4729v4, §3.1.5


class Goal(NamedTuple):
    """The lowest acceptable ratio on each kind of device; None: not measured there."""

    cpu: float | None
    gpu: float | None


class Comparison(NamedTuple):
    """One row of the table."""

    name: str
    goal: Goal
    works: Callable[[], tuple[Work, Work]]  # makes ours and the reference, which do the same work


class SideBySide:
    """The comparisons on one device, each a method that returns ours and the reference.

    A context manager: the image files for loading exist inside the block.

    Args:
        device: "cpu" or "cuda".
        batch_size: images of a training batch; None: 32 on a CPU, 256 on a GPU.
        files: how many image files to load; None: 16 batches.
        hidden: neurons of fc6 and of fc7.
    """

    def __init__(
        self, device: str, batch_size: int | None = None, files: int | None = None, hidden: int = 4096
    ) -> None:
        self.device = torch.device(device)
        self.batch_size = batch_size or (256 if device == "cuda" else 32)
        self.file_count = files or 16 * self.batch_size
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
        """Yields every comparison: first parts of a training step, then loading, testing, and transfer."""
        yield Comparison("local response normalization: torch's", Goal(5, 3), self.normalizations)
        yield Comparison("pyramid 6, 3, 2, 1: four adaptive poolings", Goal(1.5, 1.5), self.pyramids)
        yield Comparison("training step of ZF-5: plain modules", Goal(3.2, 2), self.steps)
        yield Comparison("training step of ZF-5: without a pyramid", Goal(1 / 1.15, 1 / 1.08), self.pyramid_costs)
        yield Comparison("loading from files: ImageFolder and Pillow", Goal(2, None), self.loaders)
        yield Comparison("loading from a prepared store: the same", Goal(4, None), self.prepared_loaders)
        yield Comparison("end to end: the slower of loading only and steps only", Goal(0.9, 0.9), self.end_to_end)
        yield Comparison("ten views on maps: ten crops", Goal(2, 1.5), self.ten_views)
        yield Comparison("96 views on maps: 96 crops", Goal(1.7, 1.5), self.many_views)
        yield Comparison("features of files: forward passes only", Goal(0.9, None), self.extraction)
        yield Comparison("SVMs on a Gram matrix: LinearSVC one by one", Goal(4, None), self.svms)
        if self.device.type == "cpu" and exported.can_export():
            yield Comparison("exported pyramid in onnxruntime: in PyTorch", Goal(3, None), self.exported_pyramids)
            yield Comparison("exported ZF-5 in onnxruntime: in PyTorch", Goal(1.9, None), self.exported_networks)

    def normalizations(self) -> tuple[Work, Work]:
        maps = self._random(self.batch_size, 96, 111, 111)
        ours: nn.Module = LocalResponseNorm()
        if self.device.type == "cuda":
            ours.compile()
        return forward_backward(ours, maps), forward_backward(nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), maps)

    def pyramids(self) -> tuple[Work, Work]:
        maps = self._random(4 * self.batch_size, 256, 13, 13)
        return forward_backward(SpatialPyramidPool(), maps), forward_backward(PlainPyramid(), maps)

    def steps(self) -> tuple[Work, Work]:
        reference = plain_zf5(CLASSES, hidden=self.hidden)
        reference_autocast = self.device.type == "cuda"
        if reference_autocast:
            reference = reference.to(memory_format=torch.channels_last)
        ours = self._step(self._network((6, 3, 2, 1)))
        return ours, with_default_malloc(self._step(reference, reference_autocast))

    def pyramid_costs(self) -> tuple[Work, Work]:
        return self._step(self._network((6, 3, 2, 1))), self._step(self._network(None))

    @cached_property
    def files(self) -> Path:
        """A folder of JPEG files."""
        return draw_images(Path(self._folder.name, "files"), self.file_count)

    @cached_property
    def stored(self) -> ImageData:
        """The same images in a prepared store."""
        store = Path(self._folder.name, "store")
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(open_data("folder", root=str(self.files)), store, Settings(256, 95), workers=self.workers)
        return open_data("prepared", root=str(store))

    def loaders(self) -> tuple[Work, Work]:
        files = open_data("folder", root=str(self.files))
        return on_one_thread(self._load(files)), with_default_malloc(self._load_plainly())

    def prepared_loaders(self) -> tuple[Work, Work]:
        return on_one_thread(self._load(self.stored)), with_default_malloc(self._load_plainly())

    def end_to_end(self) -> tuple[Work, Work]:
        """Four batches from a prepared store, loaded and trained on, against the slower of loading and training."""
        train_images, count = select_images(self.stored, "train"), 4 * self.batch_size
        first = dataclasses.replace(
            train_images, places=train_images.places[:count], labels=train_images.labels[:count]
        )
        data = self.stored._replace(train=first)
        images = self._random(self.batch_size, 3, 224, 224).detach()
        train = self._train(self._network((6, 3, 2, 1)))
        steps: Work = lambda: [train(images) for _ in range(4)]  # noqa: E731
        load = self._load(data)
        slower = max((load, steps), key=lambda work: (work(), seconds_of(work))[1])
        return self._load(data, train), slower

    def _load(self, data: ImageData, then: Callable[[Tensor], None] | None = None) -> Work:
        """Returns an epoch of our loading up to the input of the network, which is handed to `then`."""
        data_module = ClassificationData(
            data,
            batch_size=self.batch_size,
            crop_side=224,
            size_of_step=lambda epoch, step: 224,
            input_mean=IMAGENET_MEAN,
            input_std=_STD,
            color=False,
            seed=0,
            workers=self.workers,
            compiled=self.device.type == "cuda",
        )
        loader = data_module.train_dataloader()

        def epoch() -> None:
            for batch in loader:
                image, mirrored = (batch[key].to(self.device, non_blocking=True) for key in ("image", "mirrored"))
                images = data_module.training_input(image, mirrored, None, 224, IMAGENET_MEAN, _STD)
                if then is not None:
                    then(images)

        return epoch

    def _load_plainly(self) -> Work:
        """Returns an epoch of plain PyTorch's loading up to the input of the network."""
        loader = plain_loader(
            self.files / "train", batch_size=self.batch_size, workers=self.workers, mean=IMAGENET_MEAN, std=_STD
        )

        def epoch() -> None:
            for images, _ in loader:
                images.to(self.device, non_blocking=True)

        return epoch

    def ten_views(self) -> tuple[Work, Work]:
        return self._views([256], list(POSITIONS)[:5])

    def many_views(self) -> tuple[Work, Work]:
        return self._views(_SIX_SCALES, list(POSITIONS))

    def extraction(self) -> tuple[Work, Work]:
        network = self._network((6, 3, 2, 1)).eval()
        images = open_data("folder", root=str(self.files)).train
        hardware = Hardware(accelerator="gpu" if self.device.type == "cuda" else "cpu")
        return transfer.extraction(network, images, Path(self._folder.name, "features"), hardware)

    def svms(self) -> tuple[Work, Work]:
        return transfer.svms(Path(self._folder.name))

    def exported_pyramids(self) -> tuple[Work, Work]:
        return exported.pooling((6, 3, 2, 1), channels=256)

    def exported_networks(self) -> tuple[Work, Work]:
        return exported.whole_network(SPPNet(build_backbone("zf5"), num_classes=CLASSES, hidden=self.hidden))

    def _views(self, scales: list[int], positions: list[str]) -> tuple[Work, Work]:
        """Returns scoring by windows on maps, and by crops, of 4:3 images that are in memory at every scale."""
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
            inputs = Inputs(0, whole if maps else [_crops(protocol, whole)])
            images = images or min(self.batch_size, images_per_pass(inputs, scorer.pixels))  # as many on either side
            works.append(partial(_score, scorer, [inputs] * images))
        return works[0], works[1]

    def _random(self, *shape: int) -> Tensor:
        """Returns random values in 0..1 that require gradients, channels last."""
        maps = torch.rand(*shape, device=self.device).to(memory_format=torch.channels_last)
        return maps.requires_grad_()

    def _network(self, levels: tuple[int, ...] | None) -> SPPNet:
        """Builds ZF-5, compiled on a GPU as training compiles it."""
        network = SPPNet(build_backbone("zf5", normalization="across_channels"), levels, CLASSES, hidden=self.hidden)
        network.to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cuda":
            network.compile(dynamic=False)
        return network

    def _step(self, network: nn.Module, autocast: bool | None = None) -> Work:
        """Returns a training step on one batch that stays on the device."""
        images = self._random(self.batch_size, 3, 224, 224).detach()
        if not isinstance(network, SPPNet) and not autocast:
            images = images.contiguous()
        return partial(self._train(network, autocast), images)

    def _train(self, network: nn.Module, autocast: bool | None = None) -> Callable[[Tensor], None]:
        """Returns a function that does one training step on a batch. `autocast` None: as training decides."""
        autocast = self.autocast if autocast is None else autocast
        network = network.to(self.device).train()
        optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9, weight_decay=5e-4, fused=True)
        labels = torch.arange(self.batch_size, device=self.device)

        def step(images: Tensor) -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step


def _score(scorer: Scorer, batch: list[Inputs]) -> None:
    """Scores a batch in passes as large as those of a test."""
    size = images_per_pass(batch[0], scorer.pixels)
    for start in range(0, len(batch), size):
        scorer(batch[start : start + size])


def _crops(protocol: ViewProtocol, whole: list[Tensor]) -> Tensor:
    """Returns the crops (P, view_size, view_size, 3) of an image at all its scales, each (h, w, 3)."""
    crops = []
    for image in whole:
        crops += [image[y0:y1, x0:x1] for x0, y0, x1, y1 in windows_at(protocol, *image.shape[:2])]
    return torch.stack(crops)
