"""The default `recipe=auto`: chooses one of the other recipes by the data and the network."""

from collections.abc import Callable

import yaml
from omegaconf import DictConfig

from sppnet.classify.machine import Machine
from sppnet.classify.rates import highest_rate
from sppnet.classify.recipe import Recipe, recipe_for
from sppnet.commands.configs import CONFIGS
from sppnet.commands.settings import bound, bound_source, open_source, plain, resolved
from sppnet.runtime.names import counted

_AUTO = "auto"  # in configs/recipe/auto.yaml: the value of the recipe that is chosen


def with_recipe(config: DictConfig, count_images: Callable[[], int] | None = None) -> DictConfig:
    """Returns a resolved training configuration whose section `recipe` is complete.

    With `recipe=auto` its values are those of the recipe that fits, but for those that the user gave.

    Args:
        config: of `configs/train.yaml`, resolved; "auto" stands for what the recipe that fits has.
        count_images: returns how many images are trained on; called only for recipe=auto where it makes a difference.
            None assumes a few thousand, for checks that must not open the data.
    """
    if _AUTO not in config.recipe.values():
        return config

    name, fitted = _choice(config, count_images or (lambda: 3000))
    options = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))["recipe"]
    chosen = yaml.safe_load((CONFIGS / "recipe" / f"{name}.yaml").read_text(encoding="utf-8"))
    given = {key: value for key, value in plain(config.recipe).items() if value != _AUTO}
    completed = config.copy()
    completed.recipe = {**options, **chosen, **fitted, **given}
    return resolved(completed)  # values of a recipe may depend on others


def recipe_text(config: DictConfig, count_images: Callable[[], int]) -> str | None:
    """Returns a few words on the recipe that `with_recipe` chose for a configuration; None if the user chose it."""
    if _AUTO not in config.recipe.values():
        return None
    name, _ = _choice(config, count_images)
    recipe = Recipe(**plain(with_recipe(config, count_images).recipe))
    about = "" if name == "paper" else f" for {counted(count_images(), 'training image')}"
    about += " and trained weights" if name == "finetune" else ""

    frozen = recipe.frozen_epochs
    first = f", the first {f'{frozen} ' if frozen > 1 else ''}of the head only" if frozen else ""
    update = (
        f"{counted(recipe.batch_size, 'image')} per step, {recipe.optimizer} at rates up to {highest_rate(recipe):.2g}"
    )
    hint = "; on few images pretrained weights do better: backbone=timm backbone.pretrained=true"
    return f"recipe={name}{about}: {counted(recipe.epochs, 'epoch')}{first}, {update}{hint if name == 'small' else ''}"


def _choice(config: DictConfig, count_images: Callable[[], int]) -> tuple[str, dict[str, int]]:
    """Returns the name of the recipe that fits, and the values that follow from the number of images."""
    if config.data.get("source") == "imagenet":
        return "paper", {}
    backbone = config.backbone
    has_weights = bool(backbone.get("pretrained") or backbone.get("weights") or config.initial_weights)
    return recipe_for(count_images(), has_weights, _processes(config))


def _processes(config: DictConfig) -> int:
    """Returns how many processes share a batch, on all machines together."""
    from sppnet.runtime.machine import processes_here  # torch takes seconds, and --help should not

    machine = Machine(**bound(config.trainer, Machine, "trainer."))
    return processes_here(machine.accelerator, machine.devices) * machine.num_nodes


def count_training_images(config: DictConfig) -> int:
    """Opens the data set of a configuration, and returns how many images it has to train on."""
    return len(open_source(*bound_source(config.data)).train)
