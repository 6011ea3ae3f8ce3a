"""The plan of a training run: values out of range are refused with the key of the user."""

from dataclasses import replace

import pytest
import torch

from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.network import load_network, save_network


def make_plan(*, hidden=8, seed=0, sizes=(64,), validate_every=1, width=0.05, initial_weights=None, **recipe):
    fixed = {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.0}
    return TrainingPlan(
        architecture="zf5",
        backbone_options={"width": width},
        levels=[2, 1],
        hidden=hidden,
        sizes=Sizes(cycle=list(sizes)),
        source="shapes",
        data_options={},
        recipe=Recipe(**fixed, **({"warmup_epochs": 0} | recipe)),
        machine=Machine(validate_every=validate_every),
        seed=seed,
        initial_weights=initial_weights,
    )


def test_a_plan_makes_crops_of_its_largest_size():
    assert make_plan(sizes=(64, 48, 56)).crop_side == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden=0: must be at least 1"),
        ({"dropout": 1.0}, r"recipe\.dropout=1\.0: must be at least 0 and below 1"),
        ({"input_mean": [1.0, 2.0]}, r"recipe\.input_mean=\[1\.0, 2\.0\], recipe\.input_std=.*: must be three numbers"),
        ({"input_std": [1.0, 0.0, 1.0]}, r".*recipe\.input_std=\[1\.0, 0\.0, 1\.0\]: must be .*, input_std above 0"),
        ({"seed": -1}, "seed=-1: must be from 0 to"),
        ({"sizes": (20,)}, "sizes: 20 pixels are too few for this backbone"),
        ({"sizes": (64, 20)}, "sizes: 20 pixels are too few for this backbone"),
        ({"warmup_epochs": None, "plateau_patience": 3, "validate_every": 2}, r"trainer\.validate_every=2: must be 1"),
    ],
)
def test_values_out_of_range_are_refused_by_their_keys(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_plan(**changes)


# Starting from a trained network.

LAYERS = ("backbone", "fc6", "fc7", "fc8")


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a network of two classes with its own mean."""
    save_network(make_plan(seed=5, input_mean=[1.0, 2.0, 3.0]).build_network(["cat", "dog"]), tmp_path / "trained.ckpt")
    return str(tmp_path / "trained.ckpt")


def layers_of(network, source):
    """Returns which layers of `network` have the weights of `source`."""
    weights, others = network.state_dict(), source.state_dict()

    def is_equal(layer):
        names = [name for name in weights if name.startswith(layer)]
        return all(weights[n].shape == others[n].shape and torch.equal(weights[n], others[n]) for n in names)

    return tuple(filter(is_equal, LAYERS))


@pytest.mark.parametrize(
    ("changes", "classes", "taken"),
    [
        ({}, ["cat", "dog"], LAYERS),
        ({}, ["cat", "fox"], LAYERS[:3]),
        ({}, ["dog", "cat"], LAYERS[:3]),
        ({}, ["cat", "dog", "fox"], LAYERS[:3]),
        ({"hidden": 7}, ["cat", "dog"], LAYERS[:1]),
    ],
)
def test_layers_that_mean_the_same_are_taken_from_the_trained_network(trained, changes, classes, taken):
    statistics = {"input_mean": None, "input_std": None}
    network = make_plan(initial_weights=trained, **statistics, **changes).build_network(classes)
    assert layers_of(network, load_network(trained)) == taken
    assert network.input_mean == (1.0, 2.0, 3.0)  # which the weights were trained on
    drawn = make_plan(**changes).build_network(classes)
    assert layers_of(network, drawn) == LAYERS[len(taken) :]


def test_a_given_mean_takes_the_place_of_the_trained_networks(trained):
    plan = make_plan(initial_weights=trained, input_mean=[4.0, 5.0, 6.0], input_std=None)
    network = plan.build_network(["cat", "dog"])
    assert (network.input_mean, network.input_std) == ((4.0, 5.0, 6.0), load_network(trained).input_std)
    plan = make_plan(initial_weights=trained, input_mean=None, input_std=[7.0, 8.0, 9.0])
    network = plan.build_network(["cat", "dog"])
    assert (network.input_mean, network.input_std) == (load_network(trained).input_mean, (7.0, 8.0, 9.0))


@pytest.mark.parametrize("given", ["input_mean", "input_std"])
def test_what_the_recipe_does_not_give_is_that_of_the_timm_model(given):
    plan, statistics = make_plan(), {"input_mean": None, "input_std": None, given: [4.0, 5.0, 6.0]}
    backbone = {"architecture": "timm", "backbone_options": {"name": "vit_tiny_patch16_224"}}
    plan = replace(plan, **backbone, recipe=replace(plan.recipe, **statistics))
    half = (127.5, 127.5, 127.5)  # of this model, unlike ImageNet's
    expected = (half, [4.0, 5.0, 6.0]) if given == "input_std" else ([4.0, 5.0, 6.0], half)
    assert plan.input_statistics == expected


@pytest.mark.parametrize("key", ["input_mean", "input_std"])
def test_an_empty_list_is_not_taken_for_none(key):
    with pytest.raises(ValueError, match=rf"{key}=\[\].*: must be three numbers each"):
        make_plan(**{key: []})


def test_another_backbone_is_refused(trained):
    with pytest.raises(ValueError, match=r"^initial_weights=.*trained\.ckpt: has the backbone .*0\.05.*0\.1"):
        make_plan(initial_weights=trained, width=0.1).build_network(["cat", "dog"])
    with pytest.raises(FileNotFoundError, match=r"^initial_weights=nowhere: no such checkpoint"):
        make_plan(initial_weights="nowhere").build_network(["cat", "dog"])
