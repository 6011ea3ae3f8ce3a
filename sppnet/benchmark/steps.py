"""A training step of ZF-5 and its parts beside plain PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from sppnet.benchmark.bench import CLASSES, LEVELS, Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Works
from sppnet.benchmark.references import PlainPyramid, plain_zf5
from sppnet.benchmark.timing import Work, forward_backward, with_default_malloc
from sppnet.network import SPPNet
from sppnet.normalization import LocalResponseNorm
from sppnet.pyramid import SpatialPyramidPool


def comparisons(bench: Bench) -> Iterator[Comparison]:
    """Yields the step and its parts."""
    yield Comparison("local response normalization: torch's", Goal(5, 3), partial(normalizations, bench))
    yield Comparison("pyramid 6, 3, 2, 1: four adaptive poolings", Goal(1.5, 1.5), partial(pyramids, bench))
    yield Comparison("training step of ZF-5: plain modules", Goal(4, 2), partial(steps, bench))
    least = Goal(1 / 1.15, 1 / 1.08)
    yield Comparison("training step of ZF-5: without a pyramid", least, partial(pyramid_costs, bench))
    precision, other = ("bf16", "float32") if bench.autocast else ("float32", "bf16")
    yield Comparison(f"training step of ZF-5 in {precision}: in {other}", Goal(1, 1), partial(precisions, bench))
    ways = "compiled: eager" if bench.device.type == "cuda" else "eager: compiled"
    yield Comparison(f"training step of ZF-5 {ways}", Goal(1, 1), partial(compilations, bench), weight=3.0)


def normalizations(bench: Bench) -> Works:
    """Ours and torch's, forward and backward."""
    maps = bench.random(bench.batch_size, 96, 111, 111)
    ours: nn.Module = LocalResponseNorm()
    if bench.device.type == "cuda":
        ours.compile()
    return Works(forward_backward(ours, maps), forward_backward(nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), maps))


def pyramids(bench: Bench) -> Works:
    """The pyramid and one adaptive pooling per level, forward and backward."""
    maps = bench.random(4 * bench.batch_size, 256, 13, 13)
    return Works(forward_backward(SpatialPyramidPool(), maps), forward_backward(PlainPyramid(), maps))


def steps(bench: Bench) -> Works:
    """A step as training does it, and one of plain modules, on a GPU with autocast and channels-last as well."""
    reference = plain_zf5(CLASSES, hidden=bench.hidden)
    reference_autocast = bench.device.type == "cuda"
    if reference_autocast:
        reference = reference.to(memory_format=torch.channels_last)
    ours = _step(bench, bench.network())
    return Works(ours, with_default_malloc(_step(bench, reference, reference_autocast)))


def pyramid_costs(bench: Bench) -> Works:
    """A step with the pyramid, and one without."""
    return Works(_step(bench, bench.network(LEVELS)), _step(bench, bench.network(None)))


def precisions(bench: Bench) -> Works:
    """A step in the precision that training chooses on this device, and one in the other."""
    network = bench.network()
    return Works(_step(bench, network), _step(bench, network, not bench.autocast))


def compilations(bench: Bench) -> Works:
    """A step compiled or eager, as training chooses on this device, and one the other way."""
    return Works(_step(bench, bench.network()), _step(bench, bench.network(compiled=bench.device.type != "cuda")))


def _step(bench: Bench, network: nn.Module, autocast: bool | None = None) -> Work:
    """Returns a training step on one batch that stays on the device."""
    images = bench.random(bench.batch_size, 3, 224, 224).detach()
    if not isinstance(network, SPPNet) and not autocast:
        images = images.contiguous()
    return partial(bench.train(network, autocast), images)
