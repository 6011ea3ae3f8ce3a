"""Testing by many views: windows on maps beside crops that are passed through the network one by one."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sppnet.benchmark.bench import Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Works
from sppnet.benchmark.timing import Work
from sppnet.classify.scorer import Scorer
from sppnet.classify.views import ViewProtocol, windows_at
from sppnet.data.inputs import Inputs, images_per_pass
from sppnet.geometry import POSITIONS
from sppnet.runtime.hardware import Hardware

_SIX_SCALES = [224, 256, 300, 360, 448, 560]  # arXiv:1406.4729v4, §3.1.5


def comparisons(bench: Bench) -> Iterator[Comparison]:
    """Yields ten views at one scale, and 96 at six."""
    ten = partial(views, bench, [256], list(POSITIONS)[:5])
    yield Comparison("ten views on maps: ten crops", Goal(2, 1.5), ten)
    many = partial(views, bench, _SIX_SCALES, list(POSITIONS))
    yield Comparison("96 views on maps: 96 crops", Goal(1.7, 1.5), many, weight=6)


def views(bench: Bench, scales: list[int], positions: list[str]) -> Works:
    """Returns scoring by windows on maps, and by crops, of 4:3 images that are in memory at every scale."""
    network = bench.network().eval()
    random = np.random.default_rng(0)
    whole = [torch.from_numpy(random.integers(0, 256, (scale, round(scale * 4 / 3), 3), np.uint8)) for scale in scales]
    autocast = torch.bfloat16 if bench.autocast else None
    works: list[Work] = []
    images = 0
    for maps in (True, False):
        protocol = ViewProtocol(scales=scales, positions=positions, mirrored=True, maps=maps)
        scorer = Scorer(network, protocol, pixels=Hardware(accelerator=bench.device.type).pixels, autocast=autocast)
        inputs = Inputs(0, whole if maps else [_crops(protocol, whole)])
        images = images or min(bench.batch_size, images_per_pass(inputs, scorer.pixels))  # as many on either side
        works.append(partial(_score, scorer, [inputs] * images))
    return Works(works[0], works[1])


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
