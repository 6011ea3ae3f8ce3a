"""Sizes of epochs and learning rates of steps."""

import itertools
import math

import pytest

from sppnet.backbones import build_backbone
from sppnet.classify.schedules import (
    Sizes,
    check_sizes_fit,
    cosine_factor,
    plateau_factor,
    size_of_epoch,
    size_of_step,
)


def test_single_size():
    assert {size_of_epoch(epoch, cycle=[224]) for epoch in range(5)} == {224}


def test_alternating_sizes_take_a_full_epoch_each_and_begin_with_the_first():
    assert [size_of_epoch(epoch, cycle=[224, 180]) for epoch in range(5)] == [224, 180, 224, 180, 224]


def test_random_sizes_are_a_function_of_seed_and_epoch_and_reach_both_ends():
    sizes = [size_of_epoch(epoch, uniform=[180, 224], seed=3) for epoch in range(600)]
    assert sizes == [size_of_epoch(epoch, uniform=[180, 224], seed=3) for epoch in range(600)]
    assert sizes != [size_of_epoch(epoch, uniform=[180, 224], seed=4) for epoch in range(600)]
    assert size_of_epoch(7, uniform=[1, 4096]) == size_of_epoch(7, uniform=[1, 4096], seed=0)
    assert set(sizes) == set(range(180, 225))
    assert sum(sizes) / len(sizes) == pytest.approx(202, abs=2)


def test_drawn_sizes_are_multiples_and_reach_both_ends():
    draws = {"uniform": [128, 224], "multiple": 32, "seed": 3}
    sizes = [size_of_epoch(epoch, **draws) for epoch in range(100)]
    assert set(sizes) == {128, 160, 192, 224} == set(Sizes(**draws).all) == Sizes(**draws).of_run(1)
    assert (Sizes(**draws).smallest, Sizes(**draws).largest) == (128, 224)


def test_sizes_of_a_cycle_change_in_turn_by_step_and_every_one_comes_first_equally_often():
    cycle = [224, 180, 200]
    assert [size_of_step(0, step, cycle=cycle) for step in range(5)] == [224, 180, 200, 224, 180]
    assert [size_of_step(1, step, cycle=cycle) for step in range(5)] == [180, 200, 224, 180, 200]
    assert [size_of_step(epoch, 0, cycle=cycle) for epoch in range(4)] == [224, 180, 200, 224]


def test_random_sizes_of_steps_are_a_function_of_seed_epoch_and_step():
    def sizes(seed, epoch, **options):
        return [size_of_step(epoch, step, uniform=[180, 224], seed=seed, **options) for step in range(400)]

    assert sizes(3, 0) == sizes(3, 0)
    assert len({tuple(sizes(3, 0)), tuple(sizes(4, 0)), tuple(sizes(3, 1))}) == 3
    assert set(sizes(3, 0)) == set(range(180, 225))
    assert sum(sizes(3, 0)) / 400 == pytest.approx(202, abs=2)
    assert set(sizes(3, 0, multiple=4)) == set(range(180, 225, 4))


def test_a_schedule_gives_the_size_of_every_step():
    for sizes in ({"cycle": [224, 180, 200]}, {"uniform": [180, 224], "seed": 3, "multiple": 4}):
        by_epoch, by_batch = Sizes(**sizes), Sizes(**sizes, every="batch")
        for epoch, step in itertools.product(range(3), range(7)):
            assert by_epoch.of_step(epoch, step) == by_epoch.of_epoch(epoch) == size_of_epoch(epoch, **sizes)
            assert by_batch.of_step(epoch, step) == size_of_step(epoch, step, **sizes)
            assert by_batch.of_epoch(epoch) is None
        assert by_batch.of_run(1) == set(by_batch.all) == set(by_epoch.all)
        assert by_batch.last_epoch_note(7) is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"cycle": [224], "every": "step"}, "^sizes.every=step: must be one of epoch, batch$"),
        (
            {"cycle": [224, 224], "every": "batch"},
            r"^sizes.every=batch: needs more sizes than 224, such as sizes\.cycle=",
        ),
        ({"uniform": [224, 224], "every": "batch"}, "^sizes.every=batch: needs more sizes than 224"),
        ({"uniform": [180, 224], "multiple": 0}, "^sizes.multiple=0: must be at least 1$"),
        (
            {"uniform": [180, 224], "multiple": 32},
            r"^sizes.uniform=\[180, 224\]: must be multiples of sizes.multiple=32$",
        ),
        (
            {"cycle": [64, 96], "multiple": 32},
            r"^sizes.multiple=32: is for sizes.uniform; sizes.cycle=\[64, 96\] names",
        ),
    ],
)
def test_schedules_that_cannot_be_or_would_do_nothing_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Sizes(**sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "^sizes: give either cycle, .* or uniform, "),
        ({"cycle": [224], "uniform": [180, 224]}, "^sizes: give either cycle, .* or uniform, "),
        ({"cycle": []}, r"sizes.cycle=\[\]"),
        ({"cycle": [224, 0]}, r"sizes.cycle=\[224, 0\]"),
        ({"cycle": [4096, 4097]}, r"sizes.cycle=\[4096, 4097\].*from 1 to 4096"),
        ({"uniform": [180, 100000]}, r"sizes.uniform=\[180, 100000\].*from 1 to 4096"),
        ({"uniform": [180]}, r"sizes.uniform=\[180\]"),
        ({"uniform": [224, 180]}, r"sizes.uniform=\[224, 180\]"),
    ],
)
def test_invalid_schedules_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        size_of_epoch(0, **sizes)
    with pytest.raises(ValueError, match=message):
        Sizes(**sizes)


def test_the_range_of_a_schedule():
    def sides(**sizes):
        return Sizes(**sizes).smallest, Sizes(**sizes).largest

    assert sides(cycle=[224, 180]) == sides(uniform=[180, 224]) == (180, 224)
    assert sides(cycle=[1]) == sides(uniform=[1, 1]) == (1, 1)
    assert sides(cycle=[4096, 1]) == (1, 4096)


def test_a_schedule_gives_the_size_of_every_epoch():
    for sizes in ({"cycle": [224, 180, 200]}, {"uniform": [180, 224], "seed": 3}):
        assert [Sizes(**sizes).of_epoch(i) for i in range(9)] == [size_of_epoch(i, **sizes) for i in range(9)]


def test_a_network_without_a_pyramid_trains_at_any_one_size_and_not_at_two():
    backbone = build_backbone("zf5", width=0.03)
    for side in (31, 180, 224):
        check_sizes_fit(backbone, None, [side])
        check_sizes_fit(backbone, None, [side, side])
    check_sizes_fit(backbone, [2, 1], [224, 180])
    with pytest.raises(ValueError, match=r"180 to 224 pixels; .* at one size only: .* sizes\.cycle=\[224\]"):
        check_sizes_fit(backbone, None, [224, 180])
    for levels in (None, [2, 1]):
        with pytest.raises(ValueError, match="30 pixels are too few for this backbone, which needs at least 31"):
            check_sizes_fit(backbone, levels, [30])


def test_a_timm_model_is_checked_at_every_size_before_training():
    backbone = build_backbone("timm", name="test_maxvit")  # windows of 5 on maps of a quarter: multiples of 160 only
    check_sizes_fit(backbone, [2, 1], [160, 320])
    with pytest.raises(ValueError, match=r"sizes: 200 pixels; backbone.name='test_maxvit': .* of 200 x 200 pixels \("):
        check_sizes_fit(backbone, [2, 1], [160, 200, 320])
    check_sizes_fit(build_backbone("timm", name="test_vit"), [2, 1], [180, 201, 224])


def test_all_sizes_of_a_run_are_known_without_iterating_over_its_epochs():
    assert Sizes(cycle=[224, 180]).of_run(10**30) == {180, 224}
    assert Sizes(cycle=[224, 180]).of_run(1) == {224}
    assert Sizes(uniform=[180, 224]).of_run(10**30) == set(range(180, 225))
    with pytest.raises(ValueError, match="give either cycle"):
        Sizes()


@pytest.mark.parametrize(("epochs", "cycle"), [(70, [224]), (71, [224, 180]), (90, [180, 224]), (3, [180, 200, 224])])
def test_a_run_that_ends_at_the_tested_size_gets_no_note(epochs, cycle):
    assert Sizes(cycle=cycle).last_epoch_note(epochs) is None


@pytest.mark.parametrize(
    ("epochs", "cycle", "better"),
    [(70, [224, 180], [180, 224]), (90, [224, 180], [180, 224]), (91, [180, 224], [180, 224]),
     (9, [180, 224, 200], [200, 180, 224])],
)  # fmt: skip
def test_a_run_that_ends_at_another_size_than_the_tested_one_gets_a_note_with_a_better_cycle(epochs, cycle, better):
    last = cycle[(epochs - 1) % len(cycle)]
    words = ",".join(map(str, better))
    assert Sizes(cycle=cycle).last_epoch_note(epochs) == (
        f"the last epoch trains at {last} pixels, and crops of 224 are tested; "
        f"sizes.cycle=[{words}] with a multiple of {len(cycle)} epochs ends at 224"
    )
    assert Sizes(cycle=better).last_epoch_note(len(cycle)) is None


def test_random_sizes_get_a_note_without_a_remedy():
    last = size_of_epoch(6, uniform=[180, 223])
    assert (
        Sizes(uniform=[180, 223]).last_epoch_note(7)
        == f"the last epoch trains at {last} pixels, and crops of 223 are tested"
    )


def test_cosine_rises_linearly_then_falls_to_zero():
    factors = [cosine_factor(step, 4, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0)
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    assert cosine_factor(0, 0, 10) == 1.0


def test_cosine_stays_at_zero_after_the_last_step():
    assert [cosine_factor(step, 4, 20) for step in (20, 21, 36)] == pytest.approx([0.0, 0.0, 0.0])


def test_a_run_hardly_longer_than_its_warmup_still_ends_at_zero():
    assert [cosine_factor(step, 4, 5) for step in (3, 4, 5)] == pytest.approx([1.0, 1.0, 0.0])
    assert [cosine_factor(step, 4, 4) for step in (3, 4, 5)] == pytest.approx([1.0, 1.0, 0.0])


def test_plateau_divides_by_ten_twice_and_no_more():
    flat = [0.5] * 30
    assert [round(-math.log10(plateau_factor(flat[:n], patience=3, drops=2))) for n in (0, 3, 4, 6, 7, 30)] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip


def test_plateau_counts_again_after_every_improvement_and_every_drop():
    errors = [0.9, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7]
    assert [plateau_factor(errors[:n], patience=3, drops=2) for n in (7, 8)] == [1.0, 0.1]


def test_an_error_that_is_not_a_number_is_no_improvement():
    assert plateau_factor([0.5, math.nan, math.nan], patience=2, drops=2) == 0.1
    assert [plateau_factor([math.nan] * n, patience=2, drops=2) for n in (1, 2)] == [1.0, 0.1]
