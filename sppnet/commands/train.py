"""Trains an SPP-net classifier: python scripts/train.py --help."""

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import hydra
from omegaconf import DictConfig

from sppnet.commands.errors import CONFIGS, configuration_errors
from sppnet.commands.settings import bound, bound_choice, in_sweep, one_line_job, resolved, run_directory, run_main
from sppnet.commands.startup import run as run_command
from sppnet.runtime.run_directory import claim_run_directory, removed_if_nothing_is_saved, sole_training


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(config: DictConfig) -> float:
    """The top-1 error, a fraction: what a sweeper such as Optuna's minimizes."""
    with one_line_job("the same command resumes from its last checkpoint, if there is one"):
        config = resolved(config)
        bound(config, settings)
        return train(config)


def check(config: DictConfig) -> None:
    """Raises what is wrong with a resolved configuration. Opens no data, makes no weights and writes nothing."""
    import torch

    bound(config, settings)
    config = config.copy()
    if "pretrained" in config.backbone:
        config.backbone.pretrained = False  # downloads nothing
    with torch.device("meta"):
        read_parts(config)
    run_directory(config)


def settings(
    *,
    name: str | None,
    seed: int,
    hidden: int,
    runs: str,
    run: str | None,
    paper_epochs: int,
    backbone: dict[str, Any],
    pooling: dict[str, Any],
    sizes: dict[str, Any],
    data: dict[str, Any],
    recipe: dict[str, Any],
    trainer: dict[str, Any],
) -> None:
    """The schema of configs/train.yaml; `train` checks the sections against what they are given to."""


def pooling(*, levels: list[int] | None) -> list[int] | None:
    return levels


class Parts(NamedTuple):
    """What a run is put together from, all of it checked."""

    recipe: Any  # a Recipe
    machine: Any  # a Machine
    levels: list[int] | None
    sizes: dict[str, Any]  # arguments of `size_of_epoch`
    crop_side: int
    backbone: Any
    source: str
    data_options: dict[str, Any]


@configuration_errors()
def read_parts(config: DictConfig) -> Parts:
    """The sections of the configuration as objects and plain values. Opens no data."""
    # Imported here because torch takes seconds, and --help should not.
    import torch

    from sppnet.backbones import BACKBONES, build_backbone
    from sppnet.classify.recipe import Machine, Recipe, check_validation
    from sppnet.classify.schedules import check_sizes, check_sizes_fit, size_of_epoch
    from sppnet.data.sources import DATA_SOURCES
    from sppnet.geometry import check_levels
    from sppnet.runtime.machine import processes_here, worker_count

    recipe = Recipe(**bound(config.recipe, Recipe, "recipe."))
    machine = Machine(**bound(config.trainer, Machine, "trainer."))
    check_validation(recipe, machine)
    if config.hidden < 1:
        raise ValueError(f"hidden={config.hidden}: must be at least 1")
    if machine.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=gpu: torch finds no GPU on this machine")
    worker_count(machine.workers, processes_here(machine.accelerator, machine.devices))
    levels = pooling(**bound(config.pooling, pooling, "pooling."))
    if levels is not None:
        check_levels(levels)
    sizes = bound(config.sizes, size_of_epoch, "sizes.")
    smallest, largest = check_sizes(sizes.get("cycle"), sizes.get("uniform"))
    architecture, backbone_options = bound_choice(config.backbone, "architecture", BACKBONES, "backbone.")
    source, data_options = bound_choice(config.data, "source", DATA_SOURCES, "data.")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed={config.seed}: must be from 0 to 2**63 - 1")
    torch.manual_seed(config.seed)
    backbone = build_backbone(architecture, **backbone_options)
    check_sizes_fit(backbone, levels, sizes.get("cycle") or range(smallest, largest + 1))
    return Parts(recipe, machine, levels, {"seed": config.seed, **sizes}, largest, backbone, source, data_options)


def build_network(parts: Parts, hidden: int, classes: Sequence[str]) -> Any:
    from sppnet.network import SPPNet

    recipe = parts.recipe
    return SPPNet(
        parts.backbone,
        parts.levels,
        len(classes),
        hidden=hidden,
        dropout=recipe.dropout,
        initialization=recipe.initialization,
        input_mean=recipe.input_mean,
        input_std=recipe.input_std,
        classes=classes,
        input_side=parts.crop_side if parts.levels is None else None,
    )


def train(config: DictConfig) -> float:
    parts = read_parts(config)
    import torch

    from sppnet.classify.recipe import check_batch_size, few_steps_note
    from sppnet.classify.schedules import last_size_note
    from sppnet.data.sources import open_data
    from sppnet.results.records import read_result, result_text
    from sppnet.runtime.machine import busy_machine, claim_gpu, is_first_process, processes_here

    config.data = {"source": parts.source, **parts.data_options}  # data.root=2012 is a name, not a number
    run, outcome = run_directory(config)
    result = read_result(run)
    if result is None:
        data = open_data(parts.source, **parts.data_options)
        machine = parts.machine
        if in_sweep() and machine.devices == "auto" and torch.cuda.device_count() > 1:
            machine = dataclasses.replace(machine, devices=f"{claim_gpu(torch.cuda.device_count())},")
        processes = processes_here(machine.accelerator, machine.devices) * machine.num_nodes
        check_batch_size(parts.recipe, processes, len(data.train), len(data.val))
        # Lightning takes more seconds, which a command that went wrong until here need not wait for.
        from sppnet.classify.training import train_classifier

        network = build_network(parts, config.hidden, data.classes)
        new = {"is_new": not run.exists(), "folder_is_new": not run.parent.exists()}
        claim_run_directory(run, outcome)
        if is_first_process():
            print(
                f"{network.summary()} on {parts.source}: {len(data.train):,} + {len(data.val):,} images of "
                f"{len(data.classes)} classes\nrun directory {run}  (tensorboard --logdir {run})",
                flush=True,
            )
            notes = [
                last_size_note(parts.recipe.epochs, **parts.sizes),
                few_steps_note(parts.recipe, len(data.train), processes),
                busy_machine(),
            ]
            for note in filter(None, notes):
                print(f"note: {note}", flush=True)
        with ExitStack() as stack:
            if is_first_process():
                stack.enter_context(sole_training(run))
                stack.enter_context(removed_if_nothing_is_saved(run, **new))
            result = train_classifier(
                network,
                data,
                recipe=parts.recipe,
                machine=machine,
                crop_side=parts.crop_side,
                sizes=parts.sizes,
                seed=config.seed,
                data_name=parts.source,
                run=run,
            )
    else:
        claim_run_directory(run, outcome)
        print("already finished")
    if is_first_process():
        print(result_text(result, run))
    return result.top1_error


def stopped_before_training(number: int, frame: Any) -> None:
    print(f"stopped by {signal.Signals(number).name} outside of training; the same command resumes", file=sys.stderr)
    sys.exit(os.EX_TEMPFAIL)


def command() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stopped_before_training)
    run_main(main)


if __name__ == "__main__":  # so Lightning starts the further processes of `sppnet train` on several devices
    run_command("train")
