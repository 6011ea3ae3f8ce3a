"""Exports a classifier to a file that runs at any image size without this package: ONNX, or PyTorch's own .pt2.

Letters: N images, h and w pixels of height and width, C classes.

The file takes `pixels`, uint8 RGB (N, 3, h, w), h and w from the network's smallest input, and returns `probabilities`,
float32 (N, C): scaling and softmax are inside. A network without a pyramid takes images of its own size only.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_settings

from sppnet.network import SPPNet, weights_digest
from sppnet.runtime.environment import package_version
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line
from sppnet.use.export_check import Difference, Predict, check_predictions

OPSET = 18  # of ONNX: the one that torch exports to; others are converted from it
_MOST_ONNX_BYTES = 2**31 - 2**24  # an ONNX file is a protobuf message, of at most 2 GB; 16 MB for all but the weights


class PixelClassifier(nn.Module):
    """A network with what it needs around it: uint8 RGB (N, 3, h, w) -> probabilities float32 (N, C)."""

    def __init__(self, network: SPPNet) -> None:
        super().__init__()
        self.network = network
        self.mean = nn.Buffer(torch.tensor(network.input_mean)[:, None, None])
        self.std = nn.Buffer(torch.tensor(network.input_std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.float() - self.mean) / self.std
        # Not network(images): its checks of image sizes would become conditions on symbols.
        maps = self.network.backbone(images)
        return self.network.classify(self.network.pyramid(maps)).softmax(dim=1)


def trace(network: SPPNet) -> ExportedProgram:
    """Returns the program of a `PixelClassifier` of a network, which must be in eval mode, on the CPU.

    The number of images is free, and so are height and width unless the network has no pyramid.

    Raises ValueError for a network, such as some of timm's, whose code torch.export cannot follow.
    """
    smallest, side = network.backbone.smallest_input, network.input_side
    # Free sizes of the example that are equal, or 1, would be taken as always equal, or always 1.
    sizes = (2 * smallest + 101, 2 * smallest + 132) if side is None else (side, side)
    pixels = torch.zeros(2, 3, *sizes, dtype=torch.uint8)
    try:
        return trace_module(PixelClassifier(network).eval(), pixels, free=(0, 2, 3) if side is None else (0,))
    except Exception as error:  # torch.export fails in a dozen ways
        raise ValueError(f"{network.summary()}: torch.export cannot export it ({first_line(error)})") from error


def trace_module(module: nn.Module, example: Tensor, free: tuple[int, ...]) -> ExportedProgram:
    """Returns the program of a module of one tensor, for tensors like the example but for the sizes of `free` axes."""
    shapes = (dict.fromkeys(free, Dim.DYNAMIC),)
    # Without this setting the program requires maps of more than one cell, which the smallest inputs do not have.
    with torch.no_grad(), shape_settings.patch(backed_size_oblivious=True), _quiet():  # type: ignore[attr-defined]
        return torch.export.export(module, (example,), dynamic_shapes=shapes)


def onnx_model(program: ExportedProgram, names: tuple[str, str], opset: int = OPSET) -> Any:
    """Returns a program as an `onnx.ModelProto` whose input and output have the given names.

    Raises ValueError for a program that torch.onnx cannot export, or not to this opset.
    """
    try:
        with _quiet():
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=names[:1],
                output_names=names[1:],
                verbose=False,
            )
            model = exported.model_proto
    except Exception as error:  # torch.onnx fails in a dozen ways
        raise ValueError(
            f"format=onnx: torch.onnx cannot export this network ({first_line(error.__cause__ or error)})"
        ) from error
    if (made := model.opset_import[0].version) != opset:
        raise ValueError(f"opset={opset}: torch.onnx cannot convert this network to it, and made opset {made}")
    return model


def write_onnx(program: ExportedProgram, file: BinaryIO, metadata: dict[str, str], opset: int | None = None) -> None:
    """Writes a program as an ONNX file with its weights and metadata.

    Raises ValueError for weights too large for such a file, and as `onnx_model`.
    """
    import onnx

    weights = sum(value.nbytes for value in program.state_dict.values())
    if weights > _MOST_ONNX_BYTES:
        raise ValueError(f"format=onnx: weights of {weights / 1e9:.1f} GB, and such a file holds 2 GB; use format=pt2")
    model = onnx_model(program, ("pixels", "probabilities"), opset or OPSET)
    _name_sizes(model.graph)
    model.producer_name, model.producer_version = "sppnet", metadata.get("sppnet_version", "")
    onnx.helper.set_model_props(model, metadata)
    file.write(model.SerializeToString())


def _name_sizes(graph: Any) -> None:
    """Names the free sizes of input and output, for which torch has numbers."""
    for value, names in ((graph.input[0], ("batch", "", "height", "width")), (graph.output[0], ("batch", ""))):
        for size, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if size.HasField("dim_param"):
                size.dim_param = name
    del graph.value_info[:]  # shapes between the layers, by those numbers; runtimes work them out again


def run_onnx(path: Path | bytes) -> Predict:
    """Returns a function that computes the output of an ONNX file, or of its content, by onnxruntime on the CPU."""
    session = onnx_session(path)
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})[0]


def onnx_session(path: Path | bytes, profile: Path | None = None) -> Any:
    """Returns an `onnxruntime.InferenceSession` of an ONNX file, or of its content, with as many threads as torch has.

    With `profile`, it writes the time of every operator to a file whose name starts so (`session.end_profiling()`).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def write_pt2(program: ExportedProgram, file: BinaryIO, metadata: dict[str, str], opset: int | None = None) -> None:
    """Writes a program for `torch.export.load`, which reads each entry of the metadata as an extra file."""
    with _quiet():
        torch.export.save(program, file, extra_files=metadata)


def run_pt2(path: Path) -> Predict:
    """Returns a function that computes the output of a saved program."""
    with path.open("rb") as file, _quiet():
        classifier = torch.export.load(file).module()

    @torch.no_grad()
    def predict(values: np.ndarray) -> np.ndarray:
        return classifier(torch.from_numpy(values)).numpy()

    return predict


class Format(NamedTuple):
    """A kind of file: how it is written, and how it is run."""

    write: Callable[[ExportedProgram, BinaryIO, dict[str, str], int | None], None]
    run: Callable[[Path], Predict]


FORMATS = {"onnx": Format(write_onnx, run_onnx), "pt2": Format(write_pt2, run_pt2)}


def file_metadata(network: SPPNet, crop_side: int, shorter_side: int, checkpoint: str) -> dict[str, str]:
    """Returns what a file says about its network: names and values, those that are not text as JSON.

    Args:
        network: the one that is exported.
        crop_side: side in pixels of the crops that it was trained on.
        shorter_side: to which images were resized before they were cropped.
        checkpoint: SHA-256 of the checkpoint.
    """
    values = {
        "classes": network.classes,
        "crop_side": crop_side,
        "shorter_side": shorter_side,
        "smallest_input": network.backbone.smallest_input if network.input_side is None else network.input_side,
        "any_size": network.input_side is None,
        "network": network.description(),
    }
    texts = {
        "summary": network.summary(),
        "sppnet_version": package_version("sppnet") or "not installed",
        "weights": weights_digest(network),
        "checkpoint": checkpoint,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()} | texts


def export_network(
    network: SPPNet, path: Path, format: str, metadata: dict[str, str], *, opset: int | None = None
) -> Difference:
    """Exports a network, checks the file against it, and gives the file its name if both agree.

    Args:
        network: on the CPU, in eval mode.
        path: the file to write, atomically.
        format: a name of FORMATS.
        metadata: of `file_metadata`.
        opset: of an ONNX file; None: OPSET.

    Returns the largest differences between the probabilities of the file and those of the network.

    Raises ValueError, and leaves `path` as it was, for a network that cannot be exported, and if the file disagrees.
    """
    program = trace(network)
    with atomic_file(path) as file:
        FORMATS[format].write(program, file, metadata, opset)
        file.flush()
        return check_predictions(network, FORMATS[format].run(Path(file.name)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch.export and torch.onnx print and warn of: the check of the file says what matters."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
