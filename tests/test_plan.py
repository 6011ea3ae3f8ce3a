"""The plan of a training run: values out of range are refused with the key of the user."""

import pytest

from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes


def make_plan(*, hidden=8, seed=0, sizes=(64,), validate_every=1, **recipe):
    fixed = {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.0}
    return TrainingPlan(
        architecture="zf5",
        backbone_options={"width": 0.05},
        levels=[2, 1],
        hidden=hidden,
        sizes=Sizes(cycle=list(sizes)),
        source="shapes",
        data_options={},
        recipe=Recipe(**fixed, **({"warmup_epochs": 0} | recipe)),
        machine=Machine(validate_every=validate_every),
        seed=seed,
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
