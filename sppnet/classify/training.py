"""Trains a classifier: builds the trainer, resumes from the last checkpoint, writes the result."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, Trainer

from sppnet.classify.advice import check_batch_size
from sppnet.classify.augmentation import Augmentation
from sppnet.classify.best import best_epoch
from sppnet.classify.caching import NO_CACHING, Caching, plan_caching
from sppnet.classify.classifier import Classifier
from sppnet.classify.datamodule import ClassificationData
from sppnet.classify.loggers import LOGGERS
from sppnet.classify.machine import Machine
from sppnet.classify.outcome import return_to_best, training_result
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.reporting import EpochLines, Forecast, ProgressBar, StepLines
from sppnet.classify.tensorboard import RunLog
from sppnet.data.sources import ImageData, content_digests, images_fingerprint
from sppnet.lightning_checkpoints import (
    AtomicCheckpointIO,
    SaveCheckpoints,
    newest_checkpoint,
    recorded_precision,
    silence_lightning,
)
from sppnet.lightning_processes import process_plugins
from sppnet.network import SPPNet
from sppnet.results.records import Result, write_result
from sppnet.runtime.cluster import is_first_process
from sppnet.runtime.machine import bf16_is_fast, keep_freed_memory, processes_here, worker_count
from sppnet.runtime.processes import explained_loader_failures
from sppnet.runtime.run_directory import checkpoint_digest
from sppnet.runtime.shared_batches import loaders_fork
from sppnet.runtime.signals import StopSignals

# Compiling for one size takes up to a minute, and torch gives up beyond eight.
_MOST_COMPILED_SIZES = 4


def train_classifier(
    plan: TrainingPlan, network: SPPNet, data: ImageData, run: Path, command: list[str] | None = None
) -> Result:
    """Trains `network` on `data` as planned, from the last checkpoint in the run directory if there is one.

    Writes `checkpoints/last.ckpt` after every epoch and, as `plan.machine` says, inside epochs; `tensorboard/`
    meanwhile; and `result.json` at the end. `checkpoints/best.ckpt` is of the epoch with the lowest validation error,
    which becomes the last checkpoint of a run that stops early. Stopped by a signal, it saves and raises
    `sppnet.runtime.signals.Stopped`.

    Args:
        plan: what is trained, and how.
        network: of `plan.build_network`.
        data: the images.
        run: the run directory.
        command: the words of the command line, for the records.

    Returns the content of result.json: errors on the centre crop with n and counts, the history of every epoch, and
    versions, commit and hardware.

    Raises ValueError, before anything is written, for settings that do not fit the data or the machine.
    """
    classifier, data_module = prepared(plan, network, data)

    local_processes = processes_here(plan.machine.accelerator, plan.machine.devices)
    if is_first_process() and (note := data_module.caching.note(local_processes)):
        print(note, flush=True)

    # The checkpoint decides the precision, unless the user does.
    silence_lightning()
    newest = newest_checkpoint(run / "checkpoints")
    if newest is not None:
        plan = dataclasses.replace(plan, machine=_resumed_machine(plan.machine, newest))

    signals = StopSignals()
    trainer = _build_trainer(plan, run, signals, command)
    with signals.handled(), explained_loader_failures("trainer.workers"):
        trainer.fit(classifier, datamodule=data_module, ckpt_path=newest, weights_only=True)

    result = training_result(plan, classifier, data_module, run / "checkpoints", command)
    if trainer.is_global_zero:
        if result.stopped is not None:
            return_to_best(run / "checkpoints")
        digests = content_digests(data.val, "reading the validation images")
        fingerprint = images_fingerprint(data.val, digests)  # shows later which scores are of these images
        result = dataclasses.replace(result, checkpoint=checkpoint_digest(run), validation_images=fingerprint)
        write_result(run, result)
    return result


def prepared(
    plan: TrainingPlan, network: SPPNet, data: ImageData, kind: type[Classifier] = Classifier
) -> tuple[Classifier, ClassificationData]:
    """Returns what a trainer needs: the network ready for training in a classifier of this kind, and its batches.

    Raises ValueError for settings that do not fit the data or the machine.
    """
    local_processes = processes_here(plan.machine.accelerator, plan.machine.devices)
    processes = local_processes * plan.machine.num_nodes
    check_batch_size(plan.recipe, processes, len(data.train), len(data.val), plan.machine.accumulate)
    compiled = is_compiled(plan.machine, plan.sizes.of_run(plan.recipe.epochs))

    workers = worker_count(plan.machine.workers, local_processes)
    batch_size, caching = plan.recipe.batch_size // processes, caching_of(plan, data, local_processes)
    data_module = _build_data_module(plan, network, data, batch_size, workers, caching, compiled)
    _prepare_for_speed(network, plan.machine, compiled)
    classifier = kind(
        network,
        plan.recipe,
        seed=plan.seed,
        size_of_epoch=plan.sizes.of_epoch,
        training_labels=data.train.labels,
        validation_images=len(data.val),
        parts=_parts(plan.machine),
        largest_side=plan.crop_side,
    )
    return classifier, data_module


def caching_of(plan: TrainingPlan, data: ImageData, processes: int) -> Caching:
    """Returns which decoded images of `data` each of `processes` on this machine keeps.

    None for a single epoch, nor where loader processes would not share them.
    """
    if plan.recipe.epochs == 1 or (worker_count(plan.machine.workers, processes) and not loaders_fork()):
        return NO_CACHING
    side, random_crop = plan.crop_side, plan.recipe.crop_area is not None
    return plan_caching(plan.machine.cache, data, side=side, random_crop=random_crop, processes=processes)


def _parts(machine: Machine) -> int | None:
    """Returns the parts of every step; None: as few as fit into the memory of the GPU."""
    if machine.accumulate == "auto":
        return None if device_type(machine) == "cuda" else 1
    return int(machine.accumulate)


def device_type(machine: Machine) -> str:
    """Returns the type of the training device, "cuda" or "cpu"."""
    return "cuda" if machine.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def precision(machine: Machine) -> str:
    """Returns the precision of a new run, as Lightning names it."""
    return machine.precision or ("bf16-mixed" if bf16_is_fast(device_type(machine)) else "32-true")


def _resumed_machine(machine: Machine, checkpoint: Path) -> Machine:
    """Returns the machine with the precision of the checkpoint, unless the user asks for another. Reports both."""
    recorded = recorded_precision(checkpoint)
    if is_first_process():
        print(f"resuming from {checkpoint}", flush=True)
        if recorded is not None and recorded != precision(machine):
            continued = recorded if machine.precision is None else f"{machine.precision}, as asked"
            print(f"it was trained in {recorded} and continues in {continued}", flush=True)
    return dataclasses.replace(machine, precision=machine.precision or recorded)


def is_compiled(machine: Machine, sizes: set[int]) -> bool:
    """Whether the network is compiled: by default on a GPU, for up to four sizes, each of which is a graph.

    Raises ValueError if `machine.compile` is true and there are more sizes.
    """
    few = len(sizes) <= _MOST_COMPILED_SIZES
    if machine.compile and not few:
        raise ValueError(
            f"trainer.compile=true: this run trains at {len(sizes)} sizes, and every one would be compiled; at most "
            f"{_MOST_COMPILED_SIZES}, or leave trainer.compile out"
        )
    if machine.compile is None:
        return few and device_type(machine) == "cuda"
    return machine.compile


def _build_data_module(
    plan: TrainingPlan,
    network: SPPNet,
    data: ImageData,
    batch_size: int,
    workers: int,
    caching: Caching,
    compiled: bool,
) -> ClassificationData:
    return ClassificationData(
        data,
        batch_size=batch_size,
        crop_side=plan.crop_side,
        size_of_step=plan.sizes.of_step,
        input_mean=network.input_mean,
        input_std=network.input_std,
        color=plan.recipe.color,
        mirror=plan.recipe.mirror,
        augmentation=Augmentation.of(plan.recipe, side=plan.crop_side, mean=network.input_mean),
        balanced=plan.recipe.balanced,
        seed=plan.seed,
        workers=workers,
        caching=caching,
        compiled=compiled,
        max_unreadable=plan.machine.max_unreadable,
        allow_changed_data=plan.machine.allow_changed_data,
    )


def _prepare_for_speed(network: SPPNet, machine: Machine, compiled: bool) -> None:
    """Sets the memory format, malloc and compilation; all of them change the speed only."""
    network.to(memory_format=torch.channels_last)
    if device_type(machine) == "cpu":
        keep_freed_memory()
    if compiled:
        # One static graph per size: with dynamic shapes a second size would make the first one slower as well.
        network.compile(dynamic=False)


def _build_trainer(plan: TrainingPlan, run: Path, signals: StopSignals, command: list[str] | None) -> Trainer:
    machine = plan.machine
    terminal = sys.stderr.isatty()
    callbacks: list[Callback] = [
        EpochLines(),
        Forecast(),
        RunLog(run, command, plan.settings()),
        SaveCheckpoints(
            run / "checkpoints",
            signals,
            steps=machine.save_every_steps,
            minutes=machine.save_every_minutes,
            best_epoch=lambda module: best_epoch(cast(Classifier, module).history),
        ),
        ProgressBar(refresh_rate=10) if terminal else StepLines(),
    ]

    return Trainer(
        **trainer_options(plan),
        max_epochs=plan.recipe.epochs,
        check_val_every_n_epoch=machine.validate_every,
        logger=LOGGERS[plan.logger](run, **plan.logger_options),
        callbacks=callbacks,
        enable_progress_bar=terminal,
    )


def trainer_options(plan: TrainingPlan) -> dict[str, Any]:
    """Returns the arguments of Lightning's Trainer that do not depend on how long is trained and what is written."""
    machine = plan.machine
    return {
        "accelerator": machine.accelerator,
        "devices": machine.devices,
        "num_nodes": machine.num_nodes,
        "strategy": _strategy(plan),
        "precision": precision(machine),
        "plugins": [
            AtomicCheckpointIO(),
            *process_plugins(processes_here(machine.accelerator, machine.devices), machine.num_nodes),
        ],
        "deterministic": machine.deterministic,
        "enable_checkpointing": False,  # SaveCheckpoints does it
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # EpochSampler and ShareSampler share the images themselves
    }


def _strategy(plan: TrainingPlan) -> str:
    """Returns Lightning's name of how processes work together. Frozen weights need one that expects no gradients."""
    machine = plan.machine
    processes = processes_here(machine.accelerator, machine.devices) * machine.num_nodes
    is_ddp = machine.strategy == "ddp" or processes > 1
    return "ddp_find_unused_parameters_true" if is_ddp and plan.recipe.frozen_epochs else machine.strategy
