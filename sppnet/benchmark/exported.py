"""Exported networks in onnxruntime beside PyTorch, in float32 on the CPU with the same number of threads."""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from sppnet.backbones import build_backbone
from sppnet.benchmark.bench import CLASSES, LEVELS, Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Works
from sppnet.network import SPPNet
from sppnet.pyramid import SpatialPyramidPool
from sppnet.use.export import PixelClassifier, onnx_model, run_onnx, trace, trace_module

_MAP_SIZES = ((13, 13), (15, 20), (60, 60))  # cells
_IMAGE_SIZES = ((224, 224), (256, 341))  # pixels


def comparisons(bench: Bench) -> Iterator[Comparison]:
    """Yields the pyramid and a whole network; nothing on a GPU or without the packages of `sppnet[export]`."""
    if bench.device.type == "cpu" and can_export():
        pyramid, network = partial(pooling, LEVELS, channels=256), partial(_zf5, bench)
        yield Comparison("exported pyramid in onnxruntime: in PyTorch", Goal(3, None), pyramid)
        yield Comparison("exported ZF-5 in onnxruntime: in PyTorch", Goal(1.9, None), network)


def _zf5(bench: Bench) -> Works:
    return whole_network(SPPNet(build_backbone("zf5"), num_classes=CLASSES, hidden=bench.hidden))


def can_export() -> bool:
    """Whether the packages of `sppnet[export]` are installed."""
    return all(find_spec(package) for package in ("onnx", "onnxruntime", "onnxscript"))


def pooling(levels: Sequence[int], channels: int) -> Works:
    """Returns pooling single maps of _MAP_SIZES by slices in onnxruntime, and by adaptive pooling in PyTorch."""
    pyramid = SpatialPyramidPool(levels)
    program = trace_module(pyramid, torch.zeros(2, channels, 23, 37), free=(0, 2, 3))
    predict = run_onnx(onnx_model(program, ("maps", "pooled")).SerializeToString())
    maps = [torch.rand(1, channels, *size) for size in _MAP_SIZES]
    arrays = [one.numpy() for one in maps]
    return Works(lambda: [predict(one) for one in arrays], lambda: [pyramid(one) for one in maps])


def whole_network(network: SPPNet) -> Works:
    """Returns probabilities of single images of _IMAGE_SIZES by onnxruntime, and by PyTorch in channels-last."""
    model = onnx_model(trace(network.eval()), ("pixels", "probabilities"))
    predict = run_onnx(model.SerializeToString())
    classifier = PixelClassifier(network).eval().to(memory_format=torch.channels_last)
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (1, 3, *size), np.uint8) for size in _IMAGE_SIZES]
    images = [torch.from_numpy(one).contiguous(memory_format=torch.channels_last) for one in arrays]

    @torch.no_grad()
    def by_pytorch() -> list[Tensor]:
        return [classifier(one) for one in images]

    return Works(lambda: [predict(one) for one in arrays], by_pytorch)
