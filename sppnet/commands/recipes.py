"""The default `recipe=auto`: chooses one of the other recipes by the data and the network."""

from collections.abc import Callable

import yaml
from omegaconf import DictConfig

from sppnet.classify.recipe import recipe_for
from sppnet.commands.configs import CONFIGS
from sppnet.commands.settings import bound_source, plain, resolved

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
    from sppnet.runtime.machine import is_first_process  # torch takes seconds

    backbone = config.backbone
    pretrained = bool(backbone.get("pretrained") or backbone.get("weights") or config.initial_weights)
    is_imagenet = config.data.get("source") == "imagenet"
    images = 0 if is_imagenet else count_images() if count_images else 3000
    name, fitted = ("paper", {}) if is_imagenet else recipe_for(images, pretrained)

    options = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))["recipe"]
    chosen = yaml.safe_load((CONFIGS / "recipe" / f"{name}.yaml").read_text(encoding="utf-8"))
    given = {key: value for key, value in plain(config.recipe).items() if value != _AUTO}
    completed = config.copy()
    completed.recipe = {**options, **chosen, **fitted, **given}
    completed = resolved(completed)  # values of a recipe may depend on others
    if count_images and is_first_process():
        what = "" if is_imagenet else f" for {images:,} training images{' and pretrained weights' * pretrained}"
        recipe = completed.recipe
        print(f"recipe={name}{what}: {recipe.epochs} epochs, {recipe.batch_size} images per step", flush=True)
    return completed


def count_training_images(config: DictConfig) -> int:
    """Opens the data set of a configuration, and returns how many images it has to train on."""
    from sppnet.data.sources import open_data

    source, options = bound_source(config.data)
    return len(open_data(source, **options).train)
