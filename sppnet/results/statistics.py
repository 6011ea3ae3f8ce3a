"""Confidence intervals of errors and gains, and the paired test of two networks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def wilson_interval(wrong: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of an error measured on n images, as fractions in 0..1 (Wilson 1927).

    It covers the choice of images only: another training run of the same network would move it.

    Raises ValueError unless 0 <= wrong <= n and n >= 1.
    """
    if not 0 <= wrong <= n or n < 1:
        raise ValueError(f"wrong={wrong}, n={n}: must be 0 <= wrong <= n and n >= 1")
    from scipy.stats import binomtest  # takes a second

    interval = binomtest(int(wrong), int(n)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def error_interval(wrong: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the mean error of runs on the same images, as fractions in 0..1.

    With one run it is Wilson's, over the choice of images. With several it covers the choice of images and of training
    runs, as that of `gain_interval`.

    Args:
        wrong: bool (runs, n), which images each run got wrong.
    """
    if len(wrong) == 1:
        return wilson_interval(int(wrong.sum()), wrong.shape[1])
    low, high = gain_interval(wrong, np.zeros_like(wrong), paired=True)
    return max(0.0, low), high


def counts_interval(wrong: Sequence[int], n: int) -> tuple[float, float]:
    """Returns the 95 % interval of the mean error of runs of which only the numbers of wrong images are known.

    As `error_interval`, but too wide with several runs, because runs are taken to find the same images hard: where
    they agree on two images of three, it covered 99 % in a simulation.

    Args:
        wrong: of every run, of n images.
        n: the number of images.
    """
    if len(wrong) == 1:
        return wilson_interval(wrong[0], n)
    errors = np.array(wrong) / n
    mean = float(errors.mean())
    from_images = max(mean * (1 - mean) / n, 2 / n**2)  # at least as in `gain_interval`
    low, high = _over_images_and_runs(mean, from_images, errors)
    return max(0.0, low), min(1.0, high)


class PairedTest(NamedTuple):
    """McNemar's test of two trained networks, or of two protocols of one, on the same images."""

    only_first: int  # images that only the first gets wrong
    only_second: int
    n: int
    difference: float  # first error minus second, a fraction
    low: float  # 95 % interval of the difference, over images only: see `gain_interval`
    high: float
    p: float  # two-sided, exact: the probability that chance splits the only_* images at least as unevenly


def paired_test(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Compares two networks by which images each got wrong, bool (n,) each.

    Raises ValueError unless n agrees and is >= 1.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"{first.shape} and {second.shape} images: must be the same ones, and at least one")
    from scipy.stats import binomtest

    n, a, b = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(a, a + b).pvalue) if a + b else 1.0
    low, high = gain_interval(first[None], second[None])
    return PairedTest(a, b, n, (a - b) / n, low, high, p)


def gain_interval(baseline: np.ndarray, other: np.ndarray, *, paired: bool = False) -> tuple[float, float]:
    """Returns the 95 % interval of mean error of `baseline` minus that of `other`, as fractions in -1..1.

    With two or more runs on each side it covers the choice of images and of training runs; with one run on either side
    it covers the images only, for these trained runs.

    The quantile is Student's, because the spread of few runs is itself uncertain. Its degrees of freedom are those of
    the runs, divided by the share of the variance that comes from the runs: Student's interval if that is all of it,
    the normal one if it is none. (Satterthwaite's rule divides by the square of the share; for two protocols of
    the same three runs its intervals covered 91 to 94 % in simulations.)

    Args:
        baseline, other: bool (runs, n), which images each run got wrong; n agrees.
        paired: row i of both is the same training run, tested by two protocols, or both were trained with the same
            seed. Otherwise the runs are taken to be independent, even if they share seeds, and their numbers need not
            agree.

    Raises ValueError unless the shapes fit.
    """
    from scipy.special import stdtrit

    from_images, from_runs, degrees = _variances(_sides(baseline, other, paired))

    # At least the variance of two images, each wrong on another side, which Bonett and Price (2012) add: if all images
    # agree, the interval must not have width 0.
    variance = max(from_images + from_runs, 2 / baseline.shape[1] ** 2)
    if from_runs:
        degrees *= variance / from_runs

    gain, spread = baseline.mean() - other.mean(), stdtrit(degrees, 0.975) * math.sqrt(variance)
    return max(-1.0, float(gain - spread)), min(1.0, float(gain + spread))


class Spread(NamedTuple):
    """Why the gain of one side over the other differs from its true value: variances of fractions."""

    images: float  # by the choice of the images; more runs do not lower it
    run: float  # by the training runs, with one run on each side; n on each side divide it by n
    paired: bool = False  # run i of one side is compared with run i of the other

    def power(self, gain: float, runs: int) -> float:
        """Returns the probability that the 95 % interval of `gain_interval` shows a true gain above 0: not zero.

        Args:
            gain: the true one, a fraction above 0.
            runs: on each side, from 2.
        """
        from scipy.stats import nct, t

        from_runs = self.run / runs
        variance = self.images + from_runs
        samples = 1 if self.paired else 2
        degrees = samples * (runs - 1) * variance / from_runs if from_runs else math.inf
        return float(nct.sf(t.ppf(0.975, degrees), degrees, gain / math.sqrt(variance)))

    def shown_gain(self, runs: int, power: float = 0.8) -> float:
        """Returns the smallest true gain that so many runs on each side show with this probability, a fraction."""
        from scipy.optimize import brentq

        largest = 100 * math.sqrt(self.images + self.run)
        return float(brentq(lambda gain: self.power(gain, runs) - power, 0, largest))

    def runs_needed(self, gain: float, power: float = 0.8, most: int = 1000) -> int | None:
        """Returns how many runs on each side show a true gain with this probability; None: more than `most`."""
        return next((runs for runs in range(2, most + 1) if self.power(gain, runs) >= power), None)


def spread_of(baseline: np.ndarray, other: np.ndarray, *, paired: bool = False) -> Spread:
    """Estimates the spread of a gain, as `gain_interval` does.

    Args:
        baseline, other: bool (runs, n), which images each run got wrong, two or more runs on each side; n agrees.
        paired: as in `gain_interval`.

    Raises ValueError unless the shapes fit.
    """
    sides = _sides(baseline, other, paired)
    from_images, _, _ = _variances(sides)
    run = sum(float(side.mean(axis=1).var(ddof=1)) for side in sides)
    return Spread(max(from_images, 2 / baseline.shape[1] ** 2), run, paired)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Returns a mean over images and its 95 % interval: (mean, low, high), by Student's distribution.

    Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values: an interval needs two or more")
    from scipy.special import stdtrit

    mean, count = float(np.mean(values)), len(values)
    spread = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean, mean - spread, mean + spread


def resampled_interval(differences: Sequence[float], n_train: int, n_test: int) -> tuple[float, float]:
    """Returns the 95 % interval of a mean difference over random splits of the same images, as fractions in -1..1.

    The corrected resampled t-test of Nadeau and Bengio (2003): random splits share images, so that their differences
    are correlated, by about n_test / (n_train + n_test). Student's interval over splits, which takes them for
    independent, gets narrower with every further split of the same images and covers far too seldom.

    Args:
        differences: one per split, fractions.
        n_train, n_test: images of one split.

    Raises ValueError for fewer than two splits.
    """
    if len(differences) < 2:
        raise ValueError(f"{len(differences)} splits: an interval over splits needs two or more")
    from scipy.special import stdtrit

    count = len(differences)
    variance = (1 / count + n_test / n_train) * float(np.var(differences, ddof=1))
    variance = max(variance, 2 / n_test**2)  # as in `gain_interval`: not of width 0 where all splits agree
    mean, spread = float(np.mean(differences)), float(stdtrit(count - 1, 0.975)) * math.sqrt(variance)
    return max(-1.0, mean - spread), min(1.0, mean + spread)


def bootstrap_interval(values: Sequence[float], resampled: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of a measure, or of a difference of two, over training runs.

    With one run it covers the choice of images only, for this trained run. With several it covers the runs as well, by
    the quantile of `gain_interval`. What depends on image and run together is in both variances then, so that the
    interval is a little too wide.

    Args:
        values: of every run, on all images.
        resampled: float (runs, resamples), the same on images drawn with replacement, for all runs the same draws. Nan
            where a draw has no value.

    Raises ValueError without runs, and unless there are as many rows as runs.
    """
    if not len(values) or len(resampled) != len(values):
        raise ValueError(f"{len(values)} runs and {len(resampled)} resampled: must be as many, and at least one")
    from_images = float(np.nanvar(resampled.mean(axis=0), ddof=1))
    return _over_images_and_runs(float(np.mean(values)), from_images, np.asarray(values))


def _over_images_and_runs(mean: float, from_images: float, values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of a mean over runs, by the quantile of `gain_interval`.

    Args:
        mean: of the values.
        from_images: the variance of the mean over the choice of images.
        values: float (runs,), of every run on all images.
    """
    from scipy.special import stdtrit

    runs = len(values)
    from_runs = float(values.var(ddof=1)) / runs if runs > 1 else 0.0
    variance = from_images + from_runs
    degrees = (runs - 1) * variance / from_runs if from_runs else math.inf
    spread = float(stdtrit(degrees, 0.975)) * math.sqrt(variance)
    return mean - spread, mean + spread


def _sides(baseline: np.ndarray, other: np.ndarray, paired: bool) -> list[np.ndarray]:
    """Returns what the gain is the sum of, each float (runs, n) and independent of the others apart from the images.

    Raises ValueError unless the shapes fit.
    """
    if baseline.shape[1] != other.shape[1]:
        raise ValueError(f"{baseline.shape[1]} and {other.shape[1]} images: must be the same ones")
    if paired and len(baseline) != len(other):
        raise ValueError(f"{len(baseline)} and {len(other)} runs: must be the same ones")
    gains, losses = baseline.astype(float), -other.astype(float)
    return [gains + losses] if paired else [gains, losses]


def _variances(sides: list[np.ndarray]) -> tuple[float, float, float]:
    """Splits the variance of the sum of the means of `sides`, each float (runs, n) over the same images.

    Two-way analysis of variance with images and runs both random (Cornfield and Tukey 1956; as for cases and readers in
    Obuchowski and Rockette 1995).

    Returns the variance from the images, the variance from the runs together with the rest (of one run on one image),
    and the degrees of freedom of the latter (Welch 1947). With one run on a side: the whole variance over images, 0,
    infinity.
    """
    n = sides[0].shape[1]
    from_images = float(sum(side.mean(axis=0) for side in sides).var()) / n
    if min(map(len, sides)) == 1:
        return from_images, 0.0, math.inf

    # The spread of the images includes the rest, which must not count twice.
    from_images = max(0.0, from_images - sum(_rest(side) / side.size for side in sides))
    parts = [float(side.mean(axis=1).var(ddof=1)) / len(side) for side in sides]
    from_runs = sum(parts)
    if not from_runs:
        return from_images, 0.0, math.inf

    squares = sum(part**2 / (len(side) + 1) for part, side in zip(parts, sides, strict=True))
    return from_images, from_runs, from_runs**2 / squares - 2


def _rest(side: np.ndarray) -> float:
    """Returns the variance within float (runs, n) that comes neither from the run nor from the image."""
    rest = side - side.mean(axis=0) - side.mean(axis=1, keepdims=True) + side.mean()
    return float((rest**2).sum() / (side.size - side.shape[1]))
