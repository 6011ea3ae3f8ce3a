"""The result of a finished training, and which checkpoint it is of."""

import shlex
from pathlib import Path

from sppnet.classify.best import result_epoch, stop_reason
from sppnet.classify.classifier import Classifier
from sppnet.classify.datamodule import ClassificationData
from sppnet.classify.loading import shorter_side_for
from sppnet.classify.plan import TrainingPlan
from sppnet.lightning_checkpoints import BEST, LAST, PREVIOUS
from sppnet.results.records import Epoch, Result
from sppnet.runtime.environment import environment
from sppnet.runtime.files import keep_as


def training_result(
    plan: TrainingPlan,
    classifier: Classifier,
    data_module: ClassificationData,
    checkpoints: Path,
    command: list[str] | None,
) -> Result:
    """Returns the result of a finished training: of its last epoch, or of its best one if it stopped early.

    If that epoch's checkpoint is lost, as after damage to several files, it is of the last epoch all the same.
    """
    side, history, recipe = plan.crop_side, classifier.history, plan.recipe
    index = result_epoch(history, recipe.epochs, recipe.stop_patience)
    assert index is not None
    is_early = len(history) < recipe.epochs
    if is_early and not (checkpoints / BEST).is_file():
        index = len(history) - 1
    errors = history[index]

    return Result(
        data=plan.source,
        network=classifier.network.summary(),
        protocol=f"centre crop {side} of images at shorter side {shorter_side_for(side)}, one view",
        top1_wrong=errors["top1_wrong"],
        top5_wrong=errors["top5_wrong"],
        n=errors["n"],
        num_classes=classifier.network.num_classes,
        training_images=len(data_module.data.train),
        unreadable_training_images=len(data_module.unreadable),
        data_fingerprint=data_module.fingerprint,
        epochs=len(history),
        stopped=stop_reason(history, recipe.stop_patience) if is_early else None,
        best_epoch=index + 1 if is_early else None,
        seconds=sum(epoch["seconds"] for epoch in history),
        seed=plan.seed,
        command=None if command is None else shlex.join(command),
        precision=str(classifier.trainer.precision),
        **environment(gpus=classifier.trainer.world_size),
        history=tuple(map(Epoch.from_dict, history)),
    )


def return_to_best(checkpoints: Path) -> None:
    """Makes the best checkpoint the last one, which `load_network` reads; the last one becomes `previous.ckpt`."""
    if (checkpoints / BEST).is_file():
        keep_as(checkpoints / LAST, checkpoints / PREVIOUS)
        keep_as(checkpoints / BEST, checkpoints / LAST)
