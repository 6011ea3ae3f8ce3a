"""recipe=auto is the recipe that fits the data and the network, with the values that the user gave."""

import pytest
import yaml
from omegaconf import OmegaConf

from sppnet.classify.advice import check_batch_size
from sppnet.classify.recipe import Recipe
from sppnet.commands.naming import run_directory
from sppnet.commands.recipes import count_training_images, recipe_text, with_recipe
from sppnet.commands.settings import resolved
from sppnet.runtime import machine
from test_configs import CONFIGS, composed

NAMED = sorted(file.stem for file in (CONFIGS / "recipe").glob("*.yaml") if file.stem != "auto")


def chosen(*overrides, images=3000):
    """Returns the recipe that is chosen for a training of so many images, as plain values."""
    config = resolved(composed("recipe=auto", *overrides))
    return OmegaConf.to_container(with_recipe(config, lambda: images).recipe)


def named(name, *overrides):
    return OmegaConf.to_container(resolved(composed(f"recipe={name}", *overrides)).recipe)


PRETRAINED = ["backbone=timm", "backbone.pretrained=true"]
WEIGHTS = ["backbone=timm", "backbone.weights=body.pth"]


@pytest.mark.parametrize(
    ("overrides", "images", "name", "fitted"),
    [
        (["data=imagenet", "data.root=x"], None, "paper", {}),
        (["data=imagenet", "data.root=x", "backbone=overfeat7"], None, "paper", {"epochs": 90}),
        ([], 50_001, "fast", {}),
        ([], 50_000, "small", {"epochs": 30, "batch_size": 32}),
        ([], 5_000, "small", {"epochs": 60, "batch_size": 32}),
        ([], 1_000, "small", {"epochs": 100, "batch_size": 32}),
        ([], 639, "small", {"epochs": 100, "batch_size": 16}),
        ([], 13, "small", {"epochs": 100, "batch_size": 4}),
        (PRETRAINED, 3000, "finetune", {"batch_size": 32}),
        (WEIGHTS, 200, "finetune", {"batch_size": 8}),
        (WEIGHTS, 60_000, "finetune", {"batch_size": 32}),
        (["initial_weights=run"], 60_000, "finetune", {"batch_size": 32}),
    ],
)
def test_the_recipe_follows_the_data_and_the_weights(overrides, images, name, fitted):
    given = named(name, *overrides, *(f"recipe.{key}={value}" for key, value in fitted.items()))
    assert chosen(*overrides, images=images) == given
    text = recipe_text(resolved(composed(*overrides)), lambda: images)
    assert text.startswith(f"recipe={name}" if images is None else f"recipe={name} for {images:,} training images")
    assert f": {given['epochs']} epochs" in text
    assert f", {given['batch_size']} images per step, {given['optimizer']} at rates up to" in text


@pytest.mark.parametrize(
    ("devices", "machines", "images", "batch"),
    [(2, 1, 3000, 32), (3, 1, 3000, 24), (3, 1, 100, 3), (2, 3, 3000, 24), (2, 1, 100, 4), (2, 20, 3000, 40)],
)
def test_every_device_has_as_many_images_of_the_chosen_batch(monkeypatch, devices, machines, images, batch):
    monkeypatch.setattr(machine, "most_processes", lambda: 8)
    config = resolved(composed("trainer=cpu", f"trainer.devices={devices}", f"trainer.num_nodes={machines}"))
    recipe = Recipe(**with_recipe(config, lambda: images).recipe)
    assert recipe.batch_size == batch
    check_batch_size(recipe, devices * machines, images, images)


def test_the_line_about_the_recipe_says_what_is_trained_how_and_what_may_do_better():
    assert recipe_text(resolved(composed()), lambda: 200) == (
        "recipe=small for 200 training images: 100 epochs, 8 images per step, adamw at rates up to 0.0005; on few "
        "images pretrained weights do better: backbone=timm backbone.pretrained=true"
    )
    assert recipe_text(resolved(composed(*WEIGHTS)), lambda: 3000) == (
        "recipe=finetune for 3,000 training images and trained weights: 20 epochs, the first 2 of the head only, 32 "
        "images per step, adamw at rates up to 0.001"
    )
    one_frozen = recipe_text(resolved(composed(*WEIGHTS, "recipe.epochs=6")), lambda: 3000)
    assert "6 epochs, the first of the head only, 32 images" in one_frozen
    assert recipe_text(resolved(composed("data=imagenet", "data.root=x")), None) == (
        "recipe=paper: 70 epochs, 128 images per step, sgd at rates up to 0.01"
    )


def test_a_recipe_of_the_user_is_not_announced():
    assert recipe_text(resolved(composed("recipe=small")), lambda: 3000) is None


def test_given_values_take_the_place_of_chosen_ones():
    overrides = ["recipe.epochs=2", "recipe.batch_size=7", "recipe.mixup=0.2", "recipe.clip_gradient_norm=null"]
    assert chosen(*overrides) == named("small", *overrides)
    assert chosen(*overrides)["warmup_epochs"] == 0.4  # follows the epochs
    plateau = ["recipe.plateau_patience=3", "recipe.warmup_epochs=null"]
    assert chosen(*plateau) == named("small", *plateau)


def test_a_run_has_the_name_of_the_recipe_that_was_chosen():
    same = composed("recipe=small")
    assert run_directory(with_recipe(resolved(composed()))).path == run_directory(same).path


def test_every_value_of_a_recipe_is_left_to_the_choice():
    """Otherwise the value that is off by default would take the place of the chosen recipe's."""
    auto = yaml.safe_load((CONFIGS / "recipe" / "auto.yaml").read_text())
    for name in NAMED:
        assert yaml.safe_load((CONFIGS / "recipe" / f"{name}.yaml").read_text()).keys() <= auto.keys()
    assert set(auto.values()) == {"auto"}


def test_images_are_counted_only_where_it_makes_a_difference(tmp_path):
    for overrides in (["recipe=fast"], ["data=imagenet", "data.root=x"]):
        with_recipe(resolved(composed(*overrides)), lambda: pytest.fail("counted"))
    assert (
        count_training_images(resolved(composed(f"data.root={tmp_path / 'shapes'}", "data.train=13", "data.val=10")))
        == 13
    )
