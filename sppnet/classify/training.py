"""Training a classifier: the objects put together in sight, resumed where they stood, and a result at the end."""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from sppnet.classify.checkpoints import CheckpointFiles, Checkpoints, newest_whole
from sppnet.classify.classifier import Classifier
from sppnet.classify.datamodule import ClassificationData, shorter_side_for
from sppnet.classify.machine import bf16_is_fast, keep_freed_memory, worker_count
from sppnet.classify.recipe import Machine, Recipe, check_validation
from sppnet.classify.reporting import EpochLines, Pictures, ProgressBar
from sppnet.datasets import ImageData, content_digests, images_fingerprint
from sppnet.network import SPPNet
from sppnet.records import RESULT_FILE, checkpoint_digest, environment, write_json

# Compiling one takes up to a minute, and torch gives up beyond eight.
MOST_COMPILED_SIZES = 4


def train_classifier(
    network: SPPNet,
    data: ImageData,
    *,
    recipe: Recipe,
    machine: Machine,
    crop_side: int,
    size_of_epoch: Callable[[int], int],
    seed: int,
    data_name: str,
    run: Path,
) -> dict[str, Any]:
    """Trains until `recipe.epochs` are done, from the last checkpoint in `run` if there is one.

    Writes `checkpoints/last.ckpt` after every epoch and inside of them as `machine` says, `tensorboard/` along the way
    and `result.json` at the end. Told to stop by a signal, it saves and raises `sppnet.classify.checkpoints.Stopped`.

    Returns the content of result.json: errors on the centre crop with n and counts, the history of every epoch, and
    versions, commit and hardware.
    """
    check_validation(recipe, machine)
    _quieten_lightning()
    checkpoints = Checkpoints(run / "checkpoints", steps=machine.save_every_steps, minutes=machine.save_every_minutes)
    trainer = _build_trainer(recipe, machine, run, network, checkpoints)
    processes = trainer.num_devices * trainer.num_nodes
    if recipe.batch_size % processes:
        raise ValueError(f"recipe.batch_size={recipe.batch_size}: must be a multiple of the {processes} devices")
    if min(len(data.train), len(data.val)) < processes:
        raise ValueError(
            f"{len(data.train)} + {len(data.val)} images: must be at least one for each of {processes} devices"
        )
    compiled = is_compiled(machine, {size_of_epoch(epoch) for epoch in range(recipe.epochs)})
    module = ClassificationData(
        data,
        batch_size=recipe.batch_size // processes,
        crop_side=crop_side,
        size_of_epoch=size_of_epoch,
        input_mean=network.input_mean,
        input_std=network.input_std,
        color=recipe.color,
        seed=seed,
        workers=worker_count(machine.workers, max(1, torch.cuda.device_count())),
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
    classifier = Classifier(network, recipe, seed)
    newest = newest_whole(run / "checkpoints")
    if newest is not None and trainer.is_global_zero:
        print(f"resuming from {newest}", flush=True)
    with checkpoints.stopping_on_signals():
        trainer.fit(classifier, datamodule=module, ckpt_path=newest, weights_only=True)
    result = {"data": data_name} | _result(classifier, module)
    if trainer.is_global_zero:
        result["checkpoint"] = checkpoint_digest(run)
        digests = content_digests(data.val, "reading the validation images")
        result["validation_images"] = images_fingerprint(data.val, digests)  # by which saved scores are of this run
        write_json(run / RESULT_FILE, result)
    return result


def device_type(machine: Machine) -> str:
    """ "cuda" or "cpu"."""
    return "cuda" if machine.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def precision(machine: Machine) -> str:
    """As Lightning names it."""
    return machine.precision or ("bf16-mixed" if bf16_is_fast(device_type(machine)) else "32-true")


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
    callbacks: list[Callback] = [EpochLines(), Pictures(network.input_mean, network.input_std), checkpoints]
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
        callbacks=[*callbacks, ProgressBar(refresh_rate=10)] if terminal else callbacks,
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
    ):
        warnings.filterwarnings("ignore", message)


def _result(classifier: Classifier, module: ClassificationData) -> dict[str, Any]:
    last, network, crop_side = classifier.history[-1], classifier.network, module.crop_side
    n = last["n"]
    return {
        "network": network.summary(),
        "protocol": f"centre crop {crop_side} of images at shorter side {shorter_side_for(crop_side)}, one view",
        "top1_error": last["top1_wrong"] / n,
        "top5_error": last["top5_wrong"] / n,
        "top1_wrong": last["top1_wrong"],
        "top5_wrong": last["top5_wrong"],
        "n": n,
        "num_classes": network.num_classes,
        "training_images": len(module.data.train),
        "unreadable_training_images": len(module.unreadable),
        "data_fingerprint": module.fingerprint,
        "epochs": len(classifier.history),
        "seconds": sum(epoch["seconds"] for epoch in classifier.history),
        "seed": classifier.seed,
        **environment(),
        "history": classifier.history,
    }
