"""Exports a trained network to a file that runs without this package: `sppnet export --help`."""

from importlib.util import find_spec
from pathlib import Path

import hydra
from omegaconf import DictConfig

from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import trained_crop_side
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.settings import resolved, typed
from sppnet.geometry import CROP_SIDE, LARGEST_SCALE
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.files import check_place
from sppnet.runtime.published import is_hub_address, local_folder, parse_hub_address
from sppnet.runtime.run_directory import checkpoint_digest, checkpoint_file

_FORMATS = ("onnx", "pt2")  # of sppnet.use.export, which imports torch for seconds
_OPSETS = range(18, 24)
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="export")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    with one_line_job("no file was written"):
        config = typed(resolved(config), settings)
        check(config)
        export(config)


def settings(*, run: str, out: str, format: str | None, opset: int | None, crop_side: int | None) -> None:
    """The schema of configs/export.yaml."""


def check(config: DictConfig) -> None:
    """Raises ValueError or FileNotFoundError for a resolved configuration that cannot be run. Loads no network."""
    config = typed(config, settings)
    format = _format(config)
    if config.opset is not None and (format != "onnx" or config.opset not in _OPSETS):
        allowed = f"from {_OPSETS[0]} to {_OPSETS[-1]}" if format == "onnx" else "null: it is for format=onnx"
        raise ValueError(f"opset={config.opset}: must be {allowed}")
    if config.crop_side is not None and not 1 <= config.crop_side <= LARGEST_SCALE:
        raise ValueError(f"crop_side={config.crop_side}: must be from 1 to {LARGEST_SCALE}")
    check_place(Path(config.out))
    _check_run(config.run)
    if format == "onnx":
        _check_packages()


def _format(config: DictConfig) -> str:
    """Returns the format that a configuration asks for, by name or by the suffix of its file."""
    if config.format is not None and config.format not in _FORMATS:
        raise ValueError(f"format={config.format}: must be one of {', '.join(_FORMATS)}")
    suffix = Path(config.out).suffix.removeprefix(".").lower()
    if suffix not in ({config.format} if config.format else _FORMATS):
        must = f".{config.format}, or format null" if config.format else ".onnx or .pt2"
        raise ValueError(f"out={config.out}: must end in {must}")
    return suffix


def _check_packages() -> None:
    """Raises ValueError if a package that ONNX needs is not installed."""
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise ValueError(f"format=onnx needs the packages {', '.join(missing)}: pip install 'sppnet[export]'")


def _check_run(run: str) -> None:
    """Raises an error for a run that does not exist, for a run of detectors, and for a malformed address of the Hub."""
    if is_hub_address(run):
        parse_hub_address(run)
    elif not Path(run).exists():
        raise FileNotFoundError(f"run={run}: no such run directory or checkpoint")
    elif (Path(run) / "detectors").is_dir():
        raise _is_detector(run)


def _is_detector(run: str) -> ValueError:
    return ValueError(
        f"run={run}: is a detector, and only classifiers are exported: windows are proposed, pooled and suppressed "
        f"outside of its network; {shown_command('detect')} run={run} images=PLACE uses it"
    )


def export(config: DictConfig) -> None:
    """Exports the network that a checked configuration names, and prints what was written."""
    # They load torch, which takes seconds, and --help and the errors above should not.
    from sppnet.classify.loading import shorter_side_for
    from sppnet.detect.detector import is_detector
    from sppnet.network import load_network
    from sppnet.use.export import export_network, file_metadata

    run, out, format = local_folder(config.run), Path(config.out), _format(config)
    network = load_network(run)
    if is_detector(checkpoint_file(run)):
        raise _is_detector(config.run)
    if config.crop_side is not None and network.input_side not in (None, config.crop_side):
        raise ValueError(f"crop_side={config.crop_side}: this network takes images of {network.input_side} pixels only")
    side = network.input_side or config.crop_side or _trained_side(run)
    metadata = file_metadata(network, side, shorter_side_for(side), checkpoint_digest(run))
    print(f"{config.run}: {network.num_classes} classes, {network.summary()}", flush=True)
    print(f"exporting to {format}, then checking it on images of many sizes", flush=True)
    difference = export_network(network, out, format, metadata, opset=config.opset)

    sizes = " to ".join(f"{height} x {width}" for height, width in dict.fromkeys(difference.sizes))
    print(
        f"as PyTorch computes it for images of {sizes} pixels: probabilities within "
        f"{difference.probabilities:.1g}, log probabilities within {difference.log_probabilities:.1g}"
    )
    print(f"written: {out}, {out.stat().st_size / 1e6:.1f} MB")


def _trained_side(run: Path) -> int:
    """Returns the side of the crops of a training; without a record of it that of the paper, and says so."""
    side = trained_crop_side(run)
    if side is None:
        print(f"{run}: no config.yaml names its crop side; the file recommends {CROP_SIDE}, or give crop_side=PIXELS")
    return side or CROP_SIDE


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
