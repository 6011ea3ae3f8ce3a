"""Exported networks in onnxruntime beside PyTorch, in float32 on the CPU with the same number of threads."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from sppnet.backbones import build_backbone
from sppnet.benchmark.bench import CLASSES, LEVELS, Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Works, largest_parts
from sppnet.benchmark.timing import Work
from sppnet.network import SPPNet
from sppnet.pyramid import SpatialPyramidPool
from sppnet.use.export import PixelClassifier, onnx_model, onnx_session, run_onnx, trace, trace_module

_MAP_SIZES = ((13, 13), (15, 20), (60, 60))  # cells
_IMAGE_SIZES = ((224, 224), (256, 341))  # pixels
_PROFILED = 5  # runs whose operators are timed, after one that is not


def comparisons(bench: Bench) -> Iterator[Comparison]:
    """Yields the pyramid and a whole network; nothing on a GPU or without the packages of `sppnet[export]`."""
    if bench.device.type == "cpu" and can_export():
        pyramid, network = partial(pooling, LEVELS, channels=256), partial(_zf5, bench)
        yield _comparison("exported pyramid in onnxruntime: in PyTorch", 3, pyramid)
        yield _comparison("exported ZF-5 in onnxruntime: in PyTorch", 1.9, network)


def can_export() -> bool:
    """Whether the packages of `sppnet[export]` are installed."""
    return all(find_spec(package) for package in ("onnx", "onnxruntime", "onnxscript"))


@dataclass(frozen=True, eq=False)
class Exported:
    """A module as an ONNX model, what it is run on, and the same work by PyTorch."""

    model: bytes
    arrays: Sequence[np.ndarray]
    by_pytorch: Work

    def works(self) -> Works:
        """Returns runs of all arrays one by one, in onnxruntime and in PyTorch."""
        predict = run_onnx(self.model)
        return Works(lambda: [predict(one) for one in self.arrays], self.by_pytorch)

    def operators(self) -> str:
        """Says which operators of ONNX take most of the time in onnxruntime."""
        with TemporaryDirectory() as folder:
            session = onnx_session(self.model, profile=Path(folder) / "profile")
            name = session.get_inputs()[0].name
            for one in [*self.arrays] * (1 + _PROFILED):
                session.run(None, {name: one})
            events = json.loads(Path(session.end_profiling()).read_text())
        nodes = [event for event in events if event["name"].endswith("_kernel_time")]
        microseconds: dict[str, float] = {}
        for event in nodes[len(nodes) // (1 + _PROFILED) :]:  # not of the first run, which allocates
            operator = event["args"]["op_name"]
            microseconds[operator] = microseconds.get(operator, 0.0) + event["dur"]
        return largest_parts(microseconds)


def _comparison(name: str, goal: float, exported: Callable[[], Exported]) -> Comparison:
    return Comparison(name, Goal(goal, None), lambda: exported().works(), lambda: exported().operators())


def pooling(levels: Sequence[int], channels: int) -> Exported:
    """Returns pooling single maps of _MAP_SIZES by slices in onnxruntime, and by adaptive pooling in PyTorch."""
    pyramid = SpatialPyramidPool(levels)
    program = trace_module(pyramid, torch.zeros(2, channels, 23, 37), free=(0, 2, 3))
    maps = [torch.rand(1, channels, *size) for size in _MAP_SIZES]
    model = onnx_model(program, ("maps", "pooled")).SerializeToString()
    return Exported(model, [one.numpy() for one in maps], lambda: [pyramid(one) for one in maps])


def whole_network(network: SPPNet) -> Exported:
    """Returns probabilities of single images of _IMAGE_SIZES by onnxruntime, and by PyTorch in channels-last."""
    model = onnx_model(trace(network.eval()), ("pixels", "probabilities"))
    classifier = PixelClassifier(network).eval().to(memory_format=torch.channels_last)
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (1, 3, *size), np.uint8) for size in _IMAGE_SIZES]
    images = [torch.from_numpy(one).contiguous(memory_format=torch.channels_last) for one in arrays]

    @torch.no_grad()
    def by_pytorch() -> list[Tensor]:
        return [classifier(one) for one in images]

    return Exported(model.SerializeToString(), arrays, by_pytorch)


def _zf5(bench: Bench) -> Exported:
    return whole_network(SPPNet(build_backbone("zf5"), num_classes=CLASSES, hidden=bench.hidden))
