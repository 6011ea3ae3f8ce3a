"""The highest learning rate, and schedules by name, beside timm's own schedulers."""

import dataclasses
import math

import pytest
import timm.scheduler
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.classify.advice import rate_note
from sppnet.classify.rates import SCHEDULES, check_schedule, highest_rate, schedule_factor, timm_factor
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import cosine_factor


def make_recipe(**options):
    fixed = {"epochs": 10, "batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    return Recipe(**(fixed | {"warmup_epochs": 0} | options))


def values_by_timm(steps, **options):
    """The rates of timm's scheduler for a rate of 1, stepped once after every update as timm's train.py does."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer, num_epochs=10, step_on_epochs=False, updates_per_epoch=steps // 10, **options
    )
    values = [optimizer.param_groups[0]["lr"]]
    for step in range(1, steps + 1):
        scheduler.step_update(step)
        values.append(optimizer.param_groups[0]["lr"])
    return values[:steps]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {}),
        ("cosine", {}),
        ("cosine", {"min_lr": 0.1, "k_decay": 2.0}),
        ("multistep", {"decay_milestones": [2, 5, 9], "decay_rate": 0.3}),
        ("poly", {"decay_rate": 2.0, "min_lr": 0.01}),
        ("step", {"decay_epochs": 3, "decay_rate": 0.5}),
        ("tanh", {}),
        ("wsd", {"decay_epochs": 4, "decay_fn": "linear"}),
    ],
)
def test_a_schedule_has_the_values_of_timms_scheduler(name, options):
    found = [timm_factor(name, step, 70, steps_per_epoch=7, **options) for step in range(70)]
    expected = values_by_timm(70, sched=name, **options)
    if name == "tanh":
        expected[0] = found[0]  # timm leaves the first step at the whole rate, where the function is a little below it
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_decay_of_less_than_a_step_lasts_for_one_step():
    """timm takes a number below 1 for a share of the whole schedule."""
    factors = [timm_factor("wsd", step, 20, steps_per_epoch=2, decay_epochs=0.25) for step in range(21)]
    assert factors == [1] * 20 + [0]


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_decay_of_all_epochs_after_the_warmup_fits_any_number_of_steps(steps):
    """Of 11 steps, 5.5 for the warm-up and 5.5 for the decay would both be rounded up to 6."""
    recipe = make_recipe(epochs=11, warmup_epochs=5.5, schedule="wsd", schedule_options={"decay_epochs": 5.5})
    check_schedule(recipe)
    factors = [schedule_factor(recipe, step, 11 * steps) for step in range(11 * steps + 1)]
    assert (max(factors), factors[-1]) == (1, 0)
    longer = dataclasses.replace(recipe, schedule_options={"decay_epochs": 5.6})
    with pytest.raises(ValueError, match=r"decay_epochs must be at most 5\.5, the epochs after the warm-up$"):
        check_schedule(longer)


OPTIONS = {
    "decay_epochs": 4,
    "decay_fn": "linear",
    "decay_milestones": [1, 3],
    "decay_rate": 0.3,
    "k_decay": 2.0,
    "min_lr": 0.1,
    "cycle_decay": 0.5,
    "cycle_limit": 2,
    "cycle_mul": 2.0,
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_the_options_that_change_it_and_no_other(name, option):
    """Others would give a run of the same outcome another name."""
    options = {option: OPTIONS[option]}
    factors = [[timm_factor(name, step, 70, steps_per_epoch=7, **some) for step in range(70)] for some in ({}, options)]
    recipe = make_recipe(schedule=name, schedule_options=options)
    if factors[0] != factors[1]:
        check_schedule(recipe)
    else:
        with pytest.raises(ValueError, match=rf"^recipe\.schedule_options\.{option}: "):
            check_schedule(recipe)


def test_the_defaults_fit_the_length_of_the_run():
    step = [timm_factor("step", step, 90, steps_per_epoch=9) for step in (0, 29, 30, 59, 60, 89)]
    assert step == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    multistep = [timm_factor("multistep", step, 80, steps_per_epoch=8) for step in (0, 38, 40, 58, 60)]
    assert multistep == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert timm_factor("poly", 45, 90, steps_per_epoch=9) == pytest.approx(0.5**0.9)
    assert [timm_factor("wsd", step, 50, steps_per_epoch=5) for step in (39, 40)] == [1, 1]
    assert timm_factor("wsd", 45, 50, steps_per_epoch=5) == pytest.approx(1 - math.sqrt(0.5))


@given(st.sampled_from(SCHEDULES), st.integers(1, 40), st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_a_factor_depends_on_the_step_only_and_lies_between_0_and_1(name, total, steps):
    def factor(step):
        return timm_factor(name, step, total, steps_per_epoch=total / 7)

    alone = [factor(step) for step in steps]
    assert [factor(step) for step in reversed(steps)] == alone[::-1]
    assert all(0 <= value <= 1 + 1e-12 for value in alone)


@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
def test_the_warmup_is_that_of_the_cosine(schedule):
    recipe = make_recipe(warmup_epochs=2, schedule=schedule)
    factors = [schedule_factor(recipe, step, 50) for step in range(51)]
    assert factors[:10] == [cosine_factor(step, 10, 50) for step in range(10)] == [(i + 1) / 10 for i in range(10)]
    if schedule is None:
        assert factors == [cosine_factor(step, 10, 50) for step in range(51)]
    else:
        assert factors[10:] == [timm_factor(schedule, step, 40, steps_per_epoch=5) for step in range(41)]


def test_the_warmup_is_rounded_to_whole_steps():
    recipe = make_recipe(warmup_epochs=1.2, schedule="constant")
    factors = [schedule_factor(recipe, step, 130) for step in range(20)]  # 15.6 steps
    assert factors == [min(1, (i + 1) / 16) for i in range(20)]


def test_times_of_a_schedule_are_epochs_after_the_warmup():
    recipe = make_recipe(warmup_epochs=2, schedule="step", schedule_options={"decay_epochs": 3, "decay_rate": 0.5})
    factors = [schedule_factor(recipe, step, 100) for step in range(20, 100)]
    assert factors == [1] * 30 + [0.5] * 30 + [0.25] * 20


def test_the_cosine_of_timm_is_ours():
    factors = [timm_factor("cosine", step, 13, steps_per_epoch=1) for step in range(15)]
    assert factors == pytest.approx([cosine_factor(step, 0, 13) for step in range(15)], abs=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "batch", "base", "rate"),
    [
        ("sgd", 128, None, 0.1),
        ("sgd", 128, 512, 0.025),
        ("sgd", 512, 128, 0.4),
        ("lion", 32, 128, 0.025),
        ("adamw", 32, 128, 0.05),
        ("NAdam", 512, 128, 0.2),
        ("lookahead_lamb", 32, 128, 0.05),
    ],
)
def test_the_rate_follows_the_batch_by_the_rule_of_timm(optimizer, batch, base, rate):
    recipe = make_recipe(optimizer=optimizer, batch_size=batch, base_batch_size=base)
    assert highest_rate(recipe) == pytest.approx(rate)
    assert ("highest learning rate is" in (rate_note(recipe) or "")) == (base is not None)


def test_the_note_shows_the_rate_and_its_rule():
    assert rate_note(make_recipe(optimizer="adamw", batch_size=32, base_batch_size=128)) == (
        "the highest learning rate is 0.05: recipe.learning_rate x sqrt(32 / 128), as recipe.batch_size is 32 and "
        "recipe.base_batch_size 128"
    )
    assert rate_note(make_recipe(base_batch_size=128)) is None  # the batch that the rate is for


def test_a_rate_far_from_the_usual_one_for_the_batch_gets_a_note():
    def note(rate, batch, **options):
        return rate_note(make_recipe(learning_rate=rate, batch_size=batch, **options))

    assert note(0.04, 32) == (
        "recipe.learning_rate=0.04 hardly fits recipe.batch_size=32; usual is about 0.0025, that is 0.01 for every 128 "
        "images of a step"
    )
    for rate, batch in ((0.01, 128), (0.04, 512), (0.02, 32), (0.0999, 128), (0.0011, 128)):  # paper, fast, demo
        assert note(rate, batch) is None
    assert note(0.00099, 128) is not None
    assert note(0.04, 32, optimizer="adamw") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "tan"}, r"^recipe\.schedule=tan: must be one of constant, .*, or null; did you mean tanh\?$"),
        ({"schedule": "plateau"}, r"^recipe\.schedule=plateau: must be one of"),
        ({"schedule_options": {"min_lr": 1}}, r"^recipe\.schedule_options=.*: are of recipe\.schedule, which is null"),
        ({"schedule": "step", "schedule_options": {"decay": 1}}, r"^recipe\.schedule_options\.decay: must be one of"),
        (
            {"schedule": "cosine", "schedule_options": {"cycle_mul": 2}},
            r"^recipe\.schedule_options\.cycle_mul: must be one of k_decay, min_lr, which .*=cosine takes$",
        ),
        (
            {"schedule": "constant", "schedule_options": {"min_lr": 0.1}},
            r"^recipe\.schedule_options\.min_lr: constant takes no options$",
        ),
        ({"schedule": "step", "schedule_options": {"decay_epochs": "a"}}, r"^recipe\.schedule=step, recipe\.sched"),
        ({"schedule": "step", "schedule_options": {"decay_epochs": 0}}, r"^recipe\.schedule=step, recipe\.sched"),
        ({"schedule": "poly", "schedule_options": {"min_lr": -3.0}}, r"^recipe\.schedule=poly, recipe\.schedule_o"),
    ],
)
def test_what_timm_does_not_take_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        check_schedule(make_recipe(**options))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("cosine", {"k_decay": -1}, r"k_decay must be above 0"),
        ("cosine", {"k_decay": 0}, r"k_decay must be above 0"),  # the rate would always be 0
        ("poly", {"k_decay": math.nan}, r"k_decay must be above 0"),
        (
            "poly",
            {"decay_rate": -3},
            r"the rate would be \S+ times the highest one at times, and must be 0 to 1 times it",
        ),
        ("cosine", {"min_lr": 5}, r"min_lr must be from 0 to 1"),
        ("tanh", {"min_lr": math.nan}, r"min_lr must be from 0 to 1"),
        ("multistep", {"decay_milestones": [5, 2]}, r"decay_milestones must ascend"),
        ("multistep", {"decay_milestones": [1, 2, 3, 4], "decay_rate": -0.5}, r"decay_rate must be from 0 to 1"),
        ("step", {"decay_epochs": 4, "decay_rate": 2}, r"decay_rate must be from 0 to 1"),
        ("step", {"decay_epochs": -1}, r"decay_epochs must be above 0"),
        ("wsd", {"decay_fn": "square"}, r".*square"),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1])
def test_options_out_of_range_are_refused_before_any_step(name, options, reason, warmup):
    recipe = make_recipe(schedule=name, schedule_options=options, warmup_epochs=warmup)
    with pytest.raises(
        ValueError, match=rf"^recipe\.schedule={name}, recipe\.schedule_options={{.*}}: {reason}"
    ) as refused:
        check_schedule(recipe)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", {"k_decay": 0.5, "min_lr": 1}),
        ("poly", {"k_decay": 3, "decay_rate": 2, "min_lr": 0.1}),
        ("multistep", {"decay_milestones": [2, 2, 12], "decay_rate": 1}),
        ("step", {"decay_epochs": 0.3, "decay_rate": 0}),
        ("wsd", {"decay_epochs": 9, "decay_fn": "exp", "min_lr": 0.9}),
    ],
)
def test_options_in_their_range_are_accepted(name, options):
    check_schedule(make_recipe(schedule=name, schedule_options=options, warmup_epochs=1))
