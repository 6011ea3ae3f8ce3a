"""Publishes a trained classifier, in a folder and on the Hugging Face Hub: `sppnet publish --help`."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import trained_crop_side
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.settings import bound, resolved
from sppnet.geometry import CROP_SIDE
from sppnet.results.records import read_result
from sppnet.runtime.published import data_to_record, is_hub_address, parse_hub_address
from sppnet.runtime.run_directory import checkpoint_file, read_run_config

if TYPE_CHECKING:
    from sppnet.results.runs import Run


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="publish")
def main(config: DictConfig) -> None:
    """Runs the command on a configuration that Hydra composed."""
    with one_line_job("nothing was published"):
        publish(resolved(config))


def settings(
    *,
    run: str,
    out: str | None,
    to: str | None,
    name: str | None,
    license: str,
    private: bool | None,
    crop_side: int | None,
) -> None:
    """The schema of configs/publish.yaml."""


def check(config: DictConfig) -> None:
    """Raises ValueError for a resolved configuration that cannot be published. Loads no network."""
    from sppnet.use.publish import check_folder  # torch takes seconds, and --help should not

    config = OmegaConf.create(bound(config, settings))
    if config.out is None and config.to is None:
        raise ValueError("out: missing; give out=FOLDER, to=hf://OWNER/NAME, or both")
    if config.to is not None and (not is_hub_address(config.to) or parse_hub_address(config.to)[1]):
        raise ValueError(f"to={config.to}: must be hf://OWNER/NAME")
    if config.private is not None and config.to is None:
        raise ValueError(f"private={config.private}: is for to=hf://OWNER/NAME")
    if config.crop_side is not None and config.crop_side < 1:
        raise ValueError(f"crop_side={config.crop_side}: must be at least 1")
    if config.out is not None:
        check_folder(Path(config.out))
    _read_run(config)


def _read_run(config: DictConfig) -> tuple["Run | None", int]:
    """Returns the finished run, None for a checkpoint, and its crop side."""
    from sppnet.results.runs import Run  # torch takes seconds, and --help should not

    path = Path(config.run)
    if not checkpoint_file(path).is_file():
        raise FileNotFoundError(f"run={path}: no such run directory with a checkpoint, and no checkpoint")
    trained = read_run_config(path)
    if trained is None:
        return None, config.crop_side or trained_crop_side(path) or CROP_SIDE

    run = Run(path, trained, read_result(path))
    if run.result is None:
        raise ValueError(f"run={path}: has not finished training; its card would have no result")
    side = trained_crop_side(path)
    if side is None or config.crop_side not in (None, side):
        raise ValueError(f"crop_side={config.crop_side}: the run was trained on crops of {side}")
    return run, side


def publish(config: DictConfig) -> None:
    """Publishes what a resolved configuration asks for."""
    check(config)
    config = OmegaConf.create(bound(config, settings))

    from sppnet.detect.detector import is_detector
    from sppnet.network import load_network
    from sppnet.results.model_card import CardAbout, model_card
    from sppnet.use.publish import FILES, upload, write_published

    if is_detector(checkpoint_file(Path(config.run))):
        raise ValueError(
            f"run={config.run}: is a detector, whose .ckpt file holds all of it; publish is for classifiers"
        )
    run, side = _read_run(config)
    network = load_network(config.run)
    repository = parse_hub_address(config.to)[0] if config.to else None
    name = config.name or (repository or str(Path(config.out).absolute())).rpartition("/")[2]
    card = model_card(network, run, CardAbout(name, config.to or Path(config.out).absolute().name, config.license))
    if run is not None and not run.scores:
        print(f"{config.run}: not tested since its training; its card has the errors of validation", flush=True)

    with ExitStack() as stack:
        folder = Path(config.out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / name)
        write_published(folder, network, card, crop_side=side, data=_data_of(run))
        if config.out:
            print(f"written: {', '.join(str(folder / file) for file in FILES)}", flush=True)
        if repository:
            print(f"uploaded: {upload(folder, repository, private=config.private)}")


def _data_of(run: "Run | None") -> dict[str, Any] | None:
    """Returns what is published of the data of a finished run; None for a checkpoint, or where it may not be."""
    if run is None or run.result is None:
        return None
    return data_to_record(run.config["data"], run.result.data_fingerprint)


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    run_main(main)
