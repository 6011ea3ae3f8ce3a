"""Trains a classifier: builds the trainer, resumes from the last checkpoint, writes the result."""

import dataclasses
import logging
import sys
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from sppnet.classify.checkpoints import CheckpointFiles, Checkpoints, newest_whole, recorded_precision
from sppnet.classify.classifier import Classifier
from sppnet.classify.datamodule import ClassificationData, shorter_side_for
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Machine, Recipe, check_batch_size
from sppnet.classify.reporting import EpochLines, Pictures, ProgressBar, StepLines
from sppnet.data.sources import ImageData, content_digests, images_fingerprint
from sppnet.network import SPPNet
from sppnet.results.records import Epoch, Result, write_result
from sppnet.runtime.environment import environment
from sppnet.runtime.machine import bf16_is_fast, is_first_process, keep_freed_memory, processes_here, worker_count
from sppnet.runtime.processes import explained_loader_failures
from sppnet.runtime.run_directory import checkpoint_digest

# Compiling one takes up to a minute, and torch gives up beyond eight.
MOST_COMPILED_SIZES = 4


def train_classifier(plan: TrainingPlan, network: SPPNet, data: ImageData, run: Path) -> Result:
    """Trains `network` on `data` as planned, from the last checkpoint in the run directory if there is one.

    Writes `checkpoints/last.ckpt` after every epoch and inside epochs as `plan.machine` says, `tensorboard/` meanwhile,
    and `result.json` at the end. Stopped by a signal, it saves and raises `sppnet.classify.checkpoints.Stopped`.

    Returns the content of result.json: errors on the centre crop with n and counts, the history of every epoch, and
    versions, commit and hardware.

    Raises ValueError, before anything is written, for settings that do not fit the data or the machine.
    """
    recipe, machine = plan.recipe, plan.machine
    local_processes = processes_here(machine.accelerator, machine.devices)
    processes = local_processes * machine.num_nodes
    check_batch_size(recipe, processes, len(data.train), len(data.val))
    compiled = is_compiled(machine, plan.sizes.of_run(recipe.epochs))

    _quieten_lightning()
    newest = newest_whole(run / "checkpoints")
    machine = machine if newest is None else resumed_machine(machine, newest)
    checkpoints = Checkpoints(run / "checkpoints", steps=machine.save_every_steps, minutes=machine.save_every_minutes)
    trainer = _build_trainer(recipe, machine, run, network, checkpoints)

    data_module = ClassificationData(
        data,
        batch_size=recipe.batch_size // processes,
        crop_side=plan.crop_side,
        size_of_epoch=plan.sizes.of_epoch,
        input_mean=network.input_mean,
        input_std=network.input_std,
        color=recipe.color,
        seed=plan.seed,
        workers=worker_count(machine.workers, local_processes),
        compiled=compiled,
        max_unreadable=machine.max_unreadable,
        allow_changed_data=machine.allow_changed_data,
    )
    network.to(memory_format=torch.channels_last)
    if device_type(machine) == "cpu":
        keep_freed_memory()
    if compiled:
        # One static graph per size: with dynamic shapes a second size would make the first one slower as well.
        network.compile(dynamic=False)
    classifier = Classifier(
        network,
        recipe,
        seed=plan.seed,
        size_of_epoch=plan.sizes.of_epoch,
        training_labels=data.train.labels,
        validation_images=len(data.val),
    )

    with checkpoints.stopping_on_signals(), explained_loader_failures("trainer.workers"):
        trainer.fit(classifier, datamodule=data_module, ckpt_path=newest, weights_only=True)

    result = _result(plan, classifier, data_module, precision(machine))
    if trainer.is_global_zero:
        digests = content_digests(data.val, "reading the validation images")
        fingerprint = images_fingerprint(data.val, digests)  # tells which saved scores are of these images
        result = dataclasses.replace(result, checkpoint=checkpoint_digest(run), validation_images=fingerprint)
        write_result(run, result)
    return result


def device_type(machine: Machine) -> str:
    """ "cuda" or "cpu"."""
    return "cuda" if machine.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def precision(machine: Machine) -> str:
    """The precision of a new run, as Lightning names it."""
    return machine.precision or ("bf16-mixed" if bf16_is_fast(device_type(machine)) else "32-true")


def resumed_machine(machine: Machine, checkpoint: Path) -> Machine:
    """The same with the precision that the checkpoint was trained in, unless `machine` asks for one. Says so."""
    recorded = recorded_precision(checkpoint)
    if is_first_process():
        print(f"resuming from {checkpoint}", flush=True)
        if recorded is not None and recorded != precision(machine):
            asked = machine.precision is not None
            word = f"continues in {machine.precision}, as asked" if asked else f"continues in {recorded}"
            print(f"it was trained in {recorded} and {word}", flush=True)
    return dataclasses.replace(machine, precision=machine.precision or recorded)


def is_compiled(machine: Machine, sizes: set[int]) -> bool:
    """Whether the network is compiled: by default on a GPU, for as many sizes as are worth a graph each."""
    few = len(sizes) <= MOST_COMPILED_SIZES
    if machine.compile and not few:
        raise ValueError(
            f"trainer.compile=true: this run trains at {len(sizes)} sizes, and every one would be compiled; at most "
            f"{MOST_COMPILED_SIZES}, or leave trainer.compile out"
        )
    return device_type(machine) == "cuda" and few if machine.compile is None else machine.compile


def _build_trainer(recipe: Recipe, machine: Machine, run: Path, network: SPPNet, checkpoints: Checkpoints) -> Trainer:
    terminal = sys.stderr.isatty()
    lines = ProgressBar(refresh_rate=10) if terminal else StepLines()
    pictures = Pictures(network.input_mean, network.input_std)
    callbacks: list[Callback] = [EpochLines(), pictures, checkpoints, lines]
    return Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=machine.strategy,
        precision=precision(machine),  # type: ignore[arg-type]
        deterministic=machine.deterministic,
        max_epochs=recipe.epochs,
        check_val_every_n_epoch=machine.validate_every,
        logger=TensorBoardLogger(str(run), name="tensorboard", version=""),
        callbacks=callbacks,
        plugins=[CheckpointFiles()],
        enable_checkpointing=False,
        enable_progress_bar=terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _quieten_lightning() -> None:
    """Leaves of Lightning's messages what a person can act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*LeafSpec.*deprecated.*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message)


def _result(plan: TrainingPlan, classifier: Classifier, data_module: ClassificationData, precision: str) -> Result:
    side, history = plan.crop_side, classifier.history
    last = history[-1]
    return Result(
        data=plan.source,
        network=classifier.network.summary(),
        protocol=f"centre crop {side} of images at shorter side {shorter_side_for(side)}, one view",
        top1_wrong=last["top1_wrong"],
        top5_wrong=last["top5_wrong"],
        n=last["n"],
        num_classes=classifier.network.num_classes,
        training_images=len(data_module.data.train),
        unreadable_training_images=len(data_module.unreadable),
        data_fingerprint=data_module.fingerprint,
        epochs=len(history),
        seconds=sum(epoch["seconds"] for epoch in history),
        seed=plan.seed,
        precision=precision,
        **environment(),
        history=tuple(map(Epoch.from_dict, history)),
    )
