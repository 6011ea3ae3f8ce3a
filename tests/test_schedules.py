import itertools
import math

import pytest

from sppnet.classify.schedules import check_sizes, cosine_factor, plateau_factor, size_of_epoch


def test_single_size():
    assert {size_of_epoch(epoch, cycle=[224]) for epoch in range(5)} == {224}


def test_alternating_sizes_take_a_full_epoch_each_and_begin_with_the_first():
    assert [size_of_epoch(epoch, cycle=[224, 180]) for epoch in range(5)] == [224, 180, 224, 180, 224]


def test_random_sizes_are_a_function_of_seed_and_epoch_and_reach_both_ends():
    sizes = [size_of_epoch(epoch, uniform=[180, 224], seed=3) for epoch in range(600)]
    assert sizes == [size_of_epoch(epoch, uniform=[180, 224], seed=3) for epoch in range(600)]
    assert sizes != [size_of_epoch(epoch, uniform=[180, 224], seed=4) for epoch in range(600)]
    assert size_of_epoch(7, uniform=[1, 10**9]) == size_of_epoch(7, uniform=[1, 10**9], seed=0)
    assert set(sizes) == set(range(180, 225))
    assert sum(sizes) / len(sizes) == pytest.approx(202, abs=2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "^sizes: give either cycle, .* or uniform, "),
        ({"cycle": [224], "uniform": [180, 224]}, "^sizes: give either cycle, .* or uniform, "),
        ({"cycle": []}, r"sizes=\[\]"),
        ({"cycle": [224, 0]}, r"sizes=\[224, 0\]"),
        ({"uniform": [180]}, r"sizes.uniform=\[180\]"),
        ({"uniform": [224, 180]}, r"sizes.uniform=\[224, 180\]"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        size_of_epoch(0, **sizes)


def test_the_range_of_a_schedule():
    assert check_sizes([224, 180], None) == (180, 224)
    assert check_sizes(None, [180, 224]) == (180, 224)
    assert check_sizes([1], None) == check_sizes(None, [1, 1]) == (1, 1)


def test_cosine_rises_linearly_then_falls_to_zero():
    factors = [cosine_factor(step, 4, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0)
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    assert cosine_factor(0, 0, 10) == 1.0


def test_cosine_stays_at_zero_behind_the_last_step():
    assert [cosine_factor(step, 4, 20) for step in (20, 21, 36)] == pytest.approx([0.0, 0.0, 0.0])


def test_a_run_of_hardly_more_than_its_warmup_still_ends_at_zero():
    assert [cosine_factor(step, 4, 5) for step in (3, 4, 5)] == pytest.approx([1.0, 1.0, 0.0])
    assert [cosine_factor(step, 4, 4) for step in (3, 4, 5)] == pytest.approx([1.0, 1.0, 0.0])


def test_plateau_divides_by_ten_twice_and_no_more():
    flat = [0.5] * 30
    assert [round(-math.log10(plateau_factor(flat[:n], patience=3, drops=2))) for n in (0, 3, 4, 6, 7, 30)] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip


def test_plateau_waits_anew_after_every_improvement_and_every_drop():
    errors = [0.9, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7]
    assert [plateau_factor(errors[:n], patience=3, drops=2) for n in (7, 8)] == [1.0, 0.1]


def test_an_error_that_is_not_a_number_is_no_improvement():
    assert plateau_factor([0.5, math.nan, math.nan], patience=2, drops=2) == 0.1
    assert [plateau_factor([math.nan] * n, patience=2, drops=2) for n in (1, 2)] == [1.0, 0.1]
