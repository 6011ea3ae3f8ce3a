"""Trains an SPP-net classifier: `sppnet train --help`."""

import dataclasses
import math
import os
import signal
import sys
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sppnet.classify.advice import check_batch_size, few_steps_note, imbalance_note, rate_note
from sppnet.classify.machine import Machine
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.commands.configs import CONFIGS
from sppnet.commands.errors import configuration_errors
from sppnet.commands.jobs import one_line_job, run_main
from sppnet.commands.naming import run_directory
from sppnet.commands.recipes import count_training_images, recipe_text, with_recipe
from sppnet.commands.settings import bound, bound_choice, bound_source, named_keys, open_source, resolved, typed
from sppnet.commands.startup import run as run_command
from sppnet.commands.sweeps import in_sweep
from sppnet.runtime.cluster import check_tasks, is_first_process, requeue_slurm_job
from sppnet.runtime.files import atomic_file, check_place
from sppnet.runtime.names import counted
from sppnet.runtime.run_directory import RunDirectory
from sppnet.runtime.signals import REQUEUE_SIGNALS, write_to_stderr

if TYPE_CHECKING:
    from sppnet.classify.plan import TrainingPlan
    from sppnet.data.sources import ImageData
    from sppnet.network import SPPNet
    from sppnet.results.records import Result


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(config: DictConfig) -> float:
    """Returns the top-1 error, a fraction, which a sweeper such as Optuna's minimizes; with `find_rates`, NaN."""
    with one_line_job("the same command resumes from its last checkpoint, if there is one"):
        config = typed(resolved(config), settings)
        if config.find_rates is not None:
            find_rates(config)
            return math.nan
        return train(config)


def check(config: DictConfig) -> None:
    """Raises ValueError for a resolved configuration that cannot be trained. Opens no data and writes nothing."""
    config = with_recipe(typed(config, settings))
    _planned_directory(config, read_plan(config))
    if config.find_rates is not None:
        _check_plot(Path(config.find_rates))


def settings(
    *,
    name: str | None,
    seed: int,
    hidden: int | None,
    initial_weights: str | None,
    runs: str,
    run: str | None,
    find_rates: str | None,
    paper_epochs: int,
    backbone: dict[str, Any],
    pooling: dict[str, Any],
    sizes: dict[str, Any],
    data: dict[str, Any],
    recipe: dict[str, Any],
    trainer: dict[str, Any],
    logger: dict[str, Any],
) -> None:
    """The schema of configs/train.yaml; sections are checked against the functions that take them."""


def pooling(*, levels: list[int] | None) -> list[int] | None:
    """The schema of the section `pooling`."""
    return levels


@configuration_errors()
def read_plan(config: DictConfig) -> "TrainingPlan":
    """Returns the plan that a resolved configuration asks for, with its recipe of `with_recipe`. Opens no data.

    Raises ValueError naming the key, the value and what is allowed.
    """
    # Imported here because torch takes seconds, and --help should not.
    import torch

    from sppnet.backbones import BACKBONES
    from sppnet.classify.loggers import LOGGERS, check_package
    from sppnet.classify.plan import TrainingPlan
    from sppnet.runtime.machine import processes_here, worker_count

    machine = Machine(**bound(config.trainer, Machine, "trainer."))
    if machine.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=gpu: torch finds no GPU on this machine")
    with named_keys(trainer=Machine):
        worker_count(machine.workers, processes_here(machine.accelerator, machine.devices))  # refuses too many

    architecture, backbone_options = bound_choice(config.backbone, "architecture", BACKBONES, "backbone.")
    source, data_options = bound_source(config.data)
    logger, logger_options = bound_choice(config.logger, "kind", LOGGERS, "logger.")
    check_package(logger)
    with named_keys(backbone=BACKBONES[architecture], pooling=pooling):
        return TrainingPlan(
            architecture=architecture,
            backbone_options=backbone_options,
            levels=pooling(**bound(config.pooling, pooling, "pooling.")),
            hidden=config.hidden,
            sizes=Sizes(**{"seed": config.seed, **bound(config.sizes, Sizes, "sizes.")}),
            source=source,
            data_options=data_options,
            recipe=Recipe(**bound(config.recipe, Recipe, "recipe.")),
            machine=machine,
            seed=config.seed,
            initial_weights=config.initial_weights,
            logger=logger,
            logger_options=logger_options,
        )


def find_rates(config: DictConfig) -> None:
    """Proposes a learning rate, and plots the losses that it found at rising rates. Makes and changes no run."""
    plot = Path(config.find_rates)
    _check_plot(plot)
    config, _ = _with_counted_recipe(config)
    plan = read_plan(config)
    data = _open_data(plan)

    # Imported here because Lightning takes seconds.
    from sppnet.classify.rate_search import rate_plot, search_rate, suggested_setting
    from sppnet.classify.rates import highest_rate

    network = _build_network(plan, data)
    search = search_rate(plan, network, data)
    if not is_first_process():
        return
    with atomic_file(plot) as file:
        options = {"format": plot.suffix.lower().removeprefix("."), "dpi": 150, "bbox_inches": "tight"}
        rate_plot(search, highest_rate(plan.recipe)).savefig(file, **options)
    rates = f"at rates from {search.rates[0]:.2g} to {search.rates[-1]:.2g}"
    print(f"{counted(len(search.rates), 'step')} {rates}, plotted in {plot}", flush=True)
    setting = suggested_setting(search, plan)
    if setting is None:
        raise ValueError(
            "no rate is proposed: the loss does not fall, or less than it differs between batches; larger ones by "
            "recipe.batch_size differ less"
        )
    print(setting, flush=True)


def _check_plot(plot: Path) -> None:
    """Raises ValueError for a file that cannot hold a plot or cannot be made."""
    if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"find_rates={plot}: must end in .png, .svg or .pdf")
    check_place(plot)


def train(config: DictConfig) -> float:
    """Trains, resumes, or shows the result of the run that a resolved configuration describes.

    Returns its top-1 error, a fraction.
    """
    config, recipe = _with_counted_recipe(config)
    plan = read_plan(config)
    from sppnet.classify.best import best_epoch
    from sppnet.results.records import read_result, result_text

    run = _planned_directory(config, plan)
    result = read_result(run.path)
    if result is None:
        result = _train_plan(plan, run, recipe)
    else:
        run.claim()
        if is_first_process():
            print("already finished")
    if is_first_process():
        best = best_epoch([epoch.to_dict() for epoch in result.history])
        print(result_text(result, run.path, best))
    return result.top1_error


def _with_counted_recipe(config: DictConfig) -> tuple[DictConfig, str | None]:
    """Returns the configuration with its recipe, and a line about that if it was chosen by the number of images."""
    check(config.copy())  # before images are counted, for which shapes are drawn
    count_images = cache(partial(count_training_images, config))
    return with_recipe(config, count_images), recipe_text(config, count_images)


def _planned_directory(config: DictConfig, plan: "TrainingPlan") -> RunDirectory:
    """Returns the run directory of a resolved configuration and its plan."""
    config.data = {"source": plan.source, **plan.data_options}  # data.root=2012 is a name, not a number
    return run_directory(config)


def _train_plan(plan: "TrainingPlan", run: RunDirectory, recipe: str | None) -> "Result":
    """Trains as planned, on the GPU of this job in a sweep. `recipe` is a line about the recipe to print first."""
    import torch

    from sppnet.runtime.machine import claim_gpu, processes_here

    machine = plan.machine
    if in_sweep() and machine.devices == "auto" and torch.cuda.device_count() > 1:
        machine = dataclasses.replace(machine, devices=f"{claim_gpu(torch.cuda.device_count())},")
        plan = dataclasses.replace(plan, machine=machine)

    devices = processes_here(machine.accelerator, machine.devices)
    check_tasks(devices, machine.num_nodes)
    data = _open_data(plan)
    processes = devices * machine.num_nodes
    check_batch_size(plan.recipe, processes, len(data.train), len(data.val), machine.accumulate)

    # Imported here because Lightning takes more seconds, and the errors above should not.
    from sppnet.classify.training import train_classifier

    network = _build_network(plan, data)
    run.claim()
    if not is_first_process():  # the lock is the first one's
        return train_classifier(plan, network, data, run.path, _command())
    if recipe is not None:
        print(recipe)
    _announce(plan, network, data, processes, run.path)
    with run.training():
        return train_classifier(plan, network, data, run.path, _command())


def _open_data(plan: "TrainingPlan") -> "ImageData":
    """Opens the data set of a plan. Raises ValueError if all of its training images are of one class."""
    from sppnet.data.file_names import check_several_classes

    options = plan.data_options
    data = open_source(plan.source, options)
    if options.get("classes"):
        place = f"data.classes=[{','.join(options['classes'])}]"
    else:
        place = options.get("file") or options.get("root") or options.get("name") or plan.source
    check_several_classes(data.classes, len(data.train), place)
    return data


@configuration_errors()
def _build_network(plan: "TrainingPlan", data: "ImageData") -> "SPPNet":
    """Returns the network of a plan for the classes of its data."""
    from sppnet.backbones import BACKBONES

    with named_keys(backbone=BACKBONES[plan.architecture], pooling=pooling):
        return plan.build_network(data.classes)


def _command() -> list[str] | None:
    """Returns the words of the command line that runs this job, in a sweep too; None outside of a command."""
    if not HydraConfig.initialized():
        return None
    return ["sppnet", "train", *HydraConfig.get().overrides.task]


def _announce(plan: "TrainingPlan", network: "SPPNet", data: "ImageData", processes: int, run: Path) -> None:
    """Prints what is trained, and notes on settings that may disappoint."""
    from sppnet.runtime.machine import busy_machine

    shown_by = f"  (tensorboard --logdir {run})" if plan.logger == "tensorboard" else ""
    print(
        f"{network.summary()} on {plan.source}: {len(data.train):,} + {len(data.val):,} images of "
        f"{counted(len(data.classes), 'class')}\nrun directory {run}{shown_by}",
        flush=True,
    )

    notes = [
        plan.sizes.last_epoch_note(plan.recipe.epochs),
        rate_note(plan.recipe),
        few_steps_note(plan.recipe, len(data.train), processes),
        imbalance_note(plan.recipe, data.train.labels, data.classes),
        busy_machine(),
    ]
    for note in filter(None, notes):
        print(f"note: {note}", flush=True)


def _stopped_before_training(number: int, frame: Any) -> None:
    """Handles a stop signal outside of training, which has its own handlers."""
    write_to_stderr(f"stopped by {signal.Signals(number).name} outside of training; the same command resumes")
    if number in REQUEUE_SIGNALS and is_first_process():
        requeue_slurm_job()
    sys.exit(os.EX_TEMPFAIL)


def command() -> None:
    """Runs the command with the words in sys.argv[1:]."""
    stops = (signal.SIGTERM, *REQUEUE_SIGNALS)
    for number in stops:
        signal.signal(number, _stopped_before_training)
    try:
        run_main(main)
    finally:
        for number in stops:
            signal.signal(number, signal.SIG_DFL)  # an exception in the exit of the interpreter would be a traceback


if __name__ == "__main__":  # so Lightning starts the further processes of `sppnet train` on several devices
    run_command("train")
