"""Intervals of errors and gains, and the paired test: against known cases, formulas, and simulations."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sppnet.results.statistics import (
    Spread,
    counts_interval,
    error_interval,
    gain_interval,
    mean_interval,
    paired_test,
    resampled_interval,
    spread_of,
    wilson_interval,
)


def test_wilson_interval_of_a_known_case():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def wilson_by_its_formula(wrong, n, z=1.959963984540054):
    rate = wrong / n
    center, spread = rate + z * z / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, (center - spread) / (1 + z * z / n)), min(1.0, (center + spread) / (1 + z * z / n))


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_contains_the_rate_and_mirrors_with_it(case):
    wrong, n = case
    low, high = wilson_interval(wrong, n)
    assert (low, high) == pytest.approx(wilson_by_its_formula(wrong, n), abs=1e-9)
    assert 0 <= low <= wrong / n + 1e-12
    assert wrong / n - 1e-12 <= high <= 1
    assert wilson_interval(n - wrong, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("wrong", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(wrong, n):
    with pytest.raises(ValueError, match=f"wrong={wrong}, n={n}"):
        wilson_interval(wrong, n)


@pytest.mark.parametrize("count", [2, 7, 100])
def test_the_interval_of_a_mean_is_students(count):
    values = np.random.default_rng(count).normal(3, 2, count)
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx((values.mean(), *expected))
    with pytest.raises(ValueError, match=r"^1 values: an interval needs two or more$"):
        mean_interval(values[:1])


def test_the_interval_of_one_run_is_wilsons():
    mistakes = np.arange(40) < 13
    assert error_interval(mistakes[None]) == counts_interval([13], 40) == wilson_interval(13, 40)


def test_runs_that_agree_say_no_more_than_one_about_the_images():
    mistakes = np.tile(np.arange(400) < 100, (3, 1))
    spread = 1.959964 * math.sqrt(0.25 * 0.75 / 400)
    assert error_interval(mistakes) == pytest.approx((0.25 - spread, 0.25 + spread), abs=1e-6)
    assert counts_interval([100] * 3, 400) == pytest.approx((0.25 - spread, 0.25 + spread), abs=1e-6)


def test_the_interval_of_counts_by_its_formula():
    low, high = counts_interval([30, 40], 100)
    from_images, from_runs = 0.35 * 0.65 / 100, (0.3 - 0.4) ** 2 / 2 / 2
    variance = from_images + from_runs
    spread = stats.t.ppf(0.975, variance / from_runs) * math.sqrt(variance)
    assert (low, high) == pytest.approx((0.35 - spread, 0.35 + spread))


def test_the_intervals_of_errors_are_within_0_and_1_and_not_empty():
    for share in (0.0, 1.0):
        mistakes = np.full((3, 10), share, bool)
        for low, high in (error_interval(mistakes), counts_interval([int(10 * share)] * 3, 10)):
            assert 0 <= low < high <= 1


def test_the_intervals_of_errors_cover_images_and_runs():
    """Three runs on 300 images: each image is hard for all to a random degree, and each run is good to another."""
    random = np.random.default_rng(0)
    covered = np.zeros(2)
    for _ in range(300):
        levels = random.normal(0, 1, (1, 300)) + random.normal(0, 0.1, (3, 1)) + random.normal(0, 1, (3, 300))
        mistakes = levels > 0  # of all images and runs, half
        for i, (low, high) in enumerate((error_interval(mistakes), counts_interval(mistakes.sum(axis=1), 300))):
            covered[i] += low <= 0.5 <= high
    assert (covered / 300 >= 0.91).all()
    assert covered[0] / 300 <= 0.98


def test_paired_test_by_hand():
    first = np.array([1, 1, 1, 1, 1, 0, 0, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 0, 0, 1, 0, 0, 1, 0], bool)
    test = paired_test(first, second)
    assert (test.only_first, test.only_second, test.n) == (5, 1, 10)
    assert test.difference == pytest.approx(0.4)
    # Six disagreements, one or fewer on one side: 2 * (1 + 6) / 64.
    assert test.p == pytest.approx(14 / 64)
    assert test.low < 0.4 < test.high
    other = paired_test(second, first)
    assert (other.difference, other.p) == (pytest.approx(-0.4), test.p)


def wrong_only_in_one(only_first, only_second, neither):
    """Mistakes of two networks: so many images that only the first gets wrong, only the second, neither."""
    first = np.repeat([True, False, False], [only_first, only_second, neither])
    return first, np.repeat([False, True, False], [only_first, only_second, neither])


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_p_is_the_share_of_splits_that_are_as_uneven(a, b):
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    exact = min(1.0, float(Fraction(2 * tail, 2 ** (a + b))))
    assert paired_test(*wrong_only_in_one(a, b, 5)).p == pytest.approx(exact, rel=1e-9)


def test_equal_networks_have_difference_0_with_an_interval_around_it():
    wrong = np.zeros(500, bool)
    wrong[:30] = True
    test = paired_test(wrong, wrong)
    assert (test.only_first, test.only_second, test.difference, test.p) == (0, 0, 0.0, 1.0)
    # If 1 % of all images told them apart, 500 without one would be a surprise of 0.7 %.
    assert (test.low, test.high) == pytest.approx((-0.0055, 0.0055), abs=1e-4)
    assert paired_test(wrong[:1], wrong[:1])[3:] == (0.0, -1.0, 1.0, 1.0)


def test_the_interval_of_a_difference_of_two_networks_is_walds_for_pairs():
    a, b, n = 55, 40, 1000
    test = paired_test(*wrong_only_in_one(a, b, n - a - b))
    spread = 1.959964 * math.sqrt(a + b - (a - b) ** 2 / n) / n  # Wald's, for pairs
    assert (test.low, test.high) == pytest.approx((0.015 - spread, 0.015 + spread), abs=1e-8)


def test_paired_test_is_exact_for_as_many_images_as_imagenet_has():
    test = paired_test(*wrong_only_in_one(6_150, 5_850, 38_000))
    continuity = 1 / math.sqrt(12_000)
    normal = math.erfc((300 / math.sqrt(12_000) - continuity) / math.sqrt(2))
    assert test.p == pytest.approx(normal, rel=1e-3)


@pytest.mark.parametrize(("a", "b"), [(3, 4), (0, 0)])
def test_paired_test_needs_the_same_images(a, b):
    with pytest.raises(ValueError, match="must be the same ones"):
        paired_test(np.zeros(a, bool), np.zeros(b, bool))


# Intervals of gains. How often they contain the truth is counted on simulated networks whose true errors are known.

IMAGES, REPETITIONS = 400, 2000
OFFSETS = (-0.1, -0.25)  # of the two sides: errors of 47 and 42 %
DIFFICULTY, SIDE, REST = 1.0, 0.3, 0.7  # standard deviations of what decides whether an image is wrong
ALIKE, APART = 0.03, 0.15  # the same of the quality of runs: their errors differ by about 1 and 4 points


def made_up_outcomes(random, runs, run, paired=False):
    """Simulates REPETITIONS experiments: which images each run of both sides got wrong, and the true gain.

    An image is wrong if a sum is above 0: difficulty of the image, the same for all; its difficulty for this side; the
    quality of the run; the rest, of this run on this image. With `paired` the sides share most of the last two.

    Args:
        runs: number of runs on each side.
        run: standard deviation of their quality.

    Returns bool (repetitions, runs, images) twice, the true gain over all images and runs, and, for the first run of
    each side, the true gain over all images, (repetitions,).
    """

    def normal(*shape):
        return random.standard_normal((REPETITIONS, *shape), dtype=np.float32)

    shared = DIFFICULTY * normal(1, IMAGES)
    side_run, side_rest = run, REST
    if paired:
        shared = shared + run * normal(runs[0], 1) + REST * normal(runs[0], IMAGES)
        side_run, side_rest = run / 4, REST / 3
    spread = math.sqrt(DIFFICULTY**2 + SIDE**2 + REST**2 + (side_rest**2 if paired else 0))
    run_spread = math.sqrt(run**2 + (side_run**2 if paired else 0))
    outcomes, rates, rates_of_run = [], [], []
    for offset, count in zip(OFFSETS, runs, strict=True):
        quality = offset + side_run * normal(count, 1)
        outcomes.append(shared + quality + SIDE * normal(1, IMAGES) + side_rest * normal(count, IMAGES) > 0)
        rates.append(normal_below(offset / math.hypot(spread, run_spread)))
        rates_of_run.append(normal_below(quality[:, 0, 0] / spread))
    return *outcomes, rates[0] - rates[1], rates_of_run[0] - rates_of_run[1]


def normal_below(z):
    return torch.special.ndtr(torch.as_tensor(z, dtype=torch.float64)).numpy()


def coverage(first, second, truth, paired):
    """Returns the share of intervals that contain the truth."""
    intervals = [gain_interval(a, b, paired=paired) for a, b in zip(first, second, strict=True)]
    low, high = np.array(intervals).T
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize("run", [ALIKE, APART])
@pytest.mark.parametrize("runs", [(3, 3), (5, 5), (3, 5)])
def test_intervals_of_different_networks_cover_the_truth_in_95_of_100_cases(runs, run):
    first, second, truth, _ = made_up_outcomes(np.random.default_rng(1), runs, run)
    assert 0.93 <= coverage(first, second, truth, paired=False) <= 0.97


@pytest.mark.parametrize("run", [ALIKE, APART])
@pytest.mark.parametrize("runs", [3, 5])
def test_intervals_of_two_protocols_of_the_paired_cover_the_truth_in_95_of_100_cases(runs, run):
    first, second, truth, _ = made_up_outcomes(np.random.default_rng(2), (runs, runs), run, paired=True)
    assert 0.93 <= coverage(first, second, truth, paired=True) <= 0.97


def test_runs_of_two_protocols_taken_for_different_ones_give_intervals_that_are_too_wide():
    first, second, truth, _ = made_up_outcomes(np.random.default_rng(2), (3, 3), APART, paired=True)
    assert coverage(first, second, truth, paired=False) > 0.98


def test_intervals_of_one_run_are_over_images_only():
    first, second, truth, truth_of_run = made_up_outcomes(np.random.default_rng(3), (1, 1), APART)
    assert 0.93 <= coverage(first, second, truth_of_run, paired=False) <= 0.97
    assert coverage(first, second, truth, paired=False) < 0.7  # for other runs of the same networks it says too much


def test_intervals_with_one_run_on_one_side_are_over_images_only():
    random = np.random.default_rng(4)
    one, three = random.random((1, 300)) < 0.5, random.random((3, 300)) < 0.4
    gain = one[0] - three.mean(axis=0)
    spread = 1.959964 * gain.std() / math.sqrt(300)
    expected = (gain.mean() - spread, gain.mean() + spread)
    assert gain_interval(one, three) == pytest.approx(expected, abs=1e-8)
    assert gain_interval(three, one) == pytest.approx((-expected[1], -expected[0]), abs=1e-8)


def test_intervals_of_several_runs_are_those_of_a_two_way_analysis_of_variance():
    random = np.random.default_rng(5)
    quality, difficulty = random.normal(size=(4, 1)), random.normal(size=(1, 90))
    wrong = quality + difficulty + random.normal(size=(4, 90)) > 0
    never = np.zeros((4, 90), bool)

    # The textbook's table: sums of squares of runs, images and the rest; mean squares; variance of the mean of all.
    mean = wrong.mean()
    of_runs = sum(90 * (row.mean() - mean) ** 2 for row in wrong) / 3
    of_images = sum(4 * (column.mean() - mean) ** 2 for column in wrong.T) / 90
    rest = sum(
        (wrong[i, j] - wrong[i].mean() - wrong[:, j].mean() + mean) ** 2 for i in range(4) for j in range(90)
    ) / (3 * 90)
    runs, images = of_runs / 360, max(0, (of_images - rest) / 360)
    degrees = (5 - 2) * (runs + images) / runs
    spread = stats.t.ppf(0.975, degrees) * math.sqrt(runs + images)
    assert gain_interval(wrong, never, paired=True) == pytest.approx((mean - spread, mean + spread), abs=1e-12)


def test_the_interval_of_a_gain_contains_it_and_narrows_with_images():
    random = np.random.default_rng(0)
    widths = []
    for n in (100, 10_000):
        widths.append(0.0)
        for _ in range(50):  # how far three runs differ by chance varies much
            baseline, other = random.random((3, n)) < 0.5, random.random((3, n)) < 0.4
            low, high = gain_interval(baseline, other)
            assert low < baseline.mean() - other.mean() < high
            widths[-1] += high - low
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.3)


def test_the_interval_of_a_gain_widens_with_the_spread_of_the_seeds():
    alike = np.zeros((3, 1000), bool)
    alike[:, :300] = True
    spread = alike.copy()
    spread[0, 300:400], spread[1, 200:300] = True, False
    none = np.zeros((3, 1000), bool)
    (low, high), (low2, high2) = gain_interval(alike, none), gain_interval(spread, none)
    assert high2 - low2 > high - low
    with pytest.raises(ValueError, match="the same ones"):
        gain_interval(alike, none[:, 1:])
    with pytest.raises(ValueError, match="3 and 2 runs: must be the same ones"):
        gain_interval(alike, none[1:], paired=True)


def test_runs_that_agree_on_every_image_leave_the_uncertainty_of_the_images():
    first, second = wrong_only_in_one(55, 40, 905)
    several = gain_interval(np.stack([first] * 3), np.stack([second] * 3))
    assert several == pytest.approx(paired_test(first, second)[4:6], abs=1e-9)


def test_a_gain_that_every_run_shares_is_certain_only_for_the_paired():
    # Each run is better by the same 5 points with the second protocol, but the runs differ by 10.
    baseline, other = np.zeros((2, 3, 1000), bool)
    for i in range(3):
        baseline[i, : 300 + 100 * i] = other[i, : 300 + 100 * i] = True
        other[i, :50] = False
    low, high = gain_interval(baseline, other, paired=True)
    assert 0.03 < low < 0.05 < high < 0.07
    low, high = gain_interval(baseline, other)
    assert low < -0.1
    assert high > 0.2


# Random splits of the same images.


def test_the_interval_over_splits_is_the_corrected_resampled_t_test():
    differences = [0.02, 0.05, 0.03, 0.06]
    # s**2 = 0.001 / 3 and t(3) = 3.1824; with twice as many test as training images the factor is 1/4 + 2.
    spread = 3.182446305 * math.sqrt((0.25 + 2) * 0.001 / 3)
    assert resampled_interval(differences, 100, 200) == pytest.approx((0.04 - spread, 0.04 + spread))


def test_the_interval_over_splits_that_all_agree_is_not_empty():
    low, high = resampled_interval([0.1] * 5, 30, 50)
    assert low < 0.1 < high
    assert high - 0.1 == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(2) / 50)


def test_the_interval_over_splits_stays_within_what_is_possible():
    assert resampled_interval([-0.9, 0.9], 10, 10) == (-1, 1)


@pytest.mark.parametrize("differences", [[], [0.1]])
def test_an_interval_over_splits_needs_two(differences):
    with pytest.raises(ValueError, match=f"{len(differences)} splits: an interval over splits needs two or more"):
        resampled_interval(differences, 10, 10)


def test_intervals_over_splits_cover_the_difference_of_two_features_on_new_images():
    """Nearest-mean classifiers on a weak and a stronger feature; 10 splits of 60 images, in 400 studies."""
    studies, splits, n_train, n_test = 400, 10, 30, 30
    random = np.random.default_rng(0)
    sides = random.choice([-1, 1], (studies, 60))
    images = np.array([0.5, 0.8])[:, None, None] * sides + random.normal(size=(2, studies, 60))

    measured, true = np.empty((splits, studies)), np.empty((splits, studies))
    for i in range(splits):
        order = random.permuted(np.tile(np.arange(60), (studies, 1)), axis=1)
        train, test = order[:, :n_train], order[:, n_train:]
        accuracy, on_new_images = np.empty((2, studies)), np.empty((2, studies))
        for feature, shift in enumerate((0.5, 0.8)):
            x, y = images[feature], sides
            known, known_sides = np.take_along_axis(x, train, 1), np.take_along_axis(y, train, 1)
            right, left = (np.where(known_sides == side, known, np.nan) for side in (1, -1))
            threshold = (np.nanmean(right, axis=1) + np.nanmean(left, axis=1)) / 2
            found = np.where(np.take_along_axis(x, test, 1) > threshold[:, None], 1, -1)
            accuracy[feature] = (found == np.take_along_axis(y, test, 1)).mean(axis=1)
            on_new_images[feature] = (stats.norm.cdf(shift - threshold) + stats.norm.cdf(shift + threshold)) / 2
        measured[i], true[i] = accuracy[1] - accuracy[0], on_new_images[1] - on_new_images[0]

    truth = true.mean()
    intervals = [resampled_interval(differences, n_train, n_test) for differences in measured.T]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.995
    # Student's interval, which takes the splits for independent, is why the correction is there.
    spread = stats.t.ppf(0.975, splits - 1) * measured.std(axis=0, ddof=1) / math.sqrt(splits)
    assert np.mean(np.abs(measured.mean(axis=0) - truth) <= spread) < 0.8


# Power.


@pytest.mark.parametrize(("effect", "runs"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_runs_that_are_needed_are_those_of_the_tables_of_students_test(effect, runs):
    """Cohen 1988, table 2.4.1: two samples, 5 % two-sided, 80 % power; an effect is in standard deviations."""
    assert Spread(images=0, run=2).runs_needed(effect) == runs
    assert Spread(images=0, run=2e-4).runs_needed(effect / 100) == runs


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_pairs_that_are_needed_are_those_of_students_paired_test(effect, pairs):
    """G*Power 3.1, "t tests: difference between two dependent means", 5 % two-sided, 80 % power."""
    assert Spread(images=0, run=1, paired=True).runs_needed(effect) == pairs


def test_images_put_a_limit_to_what_more_runs_show():
    spread = Spread(images=0.01**2, run=0.02**2)
    assert spread.runs_needed(0.02, most=300) is None
    assert spread.runs_needed(0.04) < 12
    limit = (1.959964 + 0.841621) * 0.01  # of infinitely many runs
    assert spread.shown_gain(10) > spread.shown_gain(100) > spread.shown_gain(5000) > limit
    assert spread.shown_gain(5000) == pytest.approx(limit, rel=1e-3)


def test_where_only_the_images_differ_two_runs_show_as_much_as_many():
    limit = (1.959964 + 0.841621) * 0.01
    for runs in (2, 1000):
        assert Spread(images=0.01**2, run=1e-12).shown_gain(runs) == pytest.approx(limit, rel=1e-4)


def test_runs_that_all_agree_have_a_spread_above_zero():
    same = np.zeros((3, 50), bool)
    assert spread_of(same, same) == Spread(2 / 50**2, 0)
    assert 0 < spread_of(same, same).shown_gain(5) < 1


@given(st.floats(1e-6, 1e-2), st.floats(1e-6, 1e-2), st.integers(2, 60), st.floats(0.3, 0.95))
def test_the_smallest_gain_is_shown_with_the_power_that_was_asked_for(images, run, runs, power):
    spread = Spread(images, run)
    gain = spread.shown_gain(runs, power)
    assert spread.power(gain, runs) == pytest.approx(power, abs=1e-6)
    needed = spread.runs_needed(1.0001 * gain, power, most=runs)
    assert needed is not None
    assert needed <= runs


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("run", [ALIKE, APART])
def test_the_power_is_the_share_of_intervals_that_show_the_gain(run, paired):
    runs = 5
    first, second, truth, _ = made_up_outcomes(np.random.default_rng(7), (runs, runs), run)
    shown = np.mean([gain_interval(a, b, paired=paired)[0] > 0 for a, b in zip(first, second, strict=True)])
    both = zip(first[:300], second[:300], strict=True)
    spreads = np.array([spread_of(a, b, paired=paired) for a, b in both])
    spread = Spread(*spreads.mean(axis=0))
    assert 0.2 < shown < 0.95  # where a wrong formula would be seen
    assert spread.power(float(truth), runs) == pytest.approx(shown, abs=0.06)
