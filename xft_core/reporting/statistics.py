"""The uncertainty of a score and of a difference between two. It covers only the choice of problems, not the variation
between seeds of training or sampling."""

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist, fmean, pvariance

import numpy as np

Z_95 = NormalDist().inv_cdf(0.975)

# The most steps into which a problem's pass rate is divided. Only ungraded answers can ever require more.
FINEST = 10_000


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of ``values``, one for each problem, from the population variance as in the evaluate stage."""
    return math.sqrt(pvariance(values) / len(values))


def ratio(sums: list[float], weights: list[int]) -> tuple[float, float | None]:
    """sum(sums) / sum(weights), and its standard error with the rows as the sample: that of a ratio of two means, by
    linearisation (Cochran, Sampling Techniques, 3rd ed., section 2.11). None for a single row."""
    number, total = len(sums), sum(weights)
    value = math.fsum(sums) / total
    if number < 2:
        return value, None
    squares = math.fsum((part - value * weight) ** 2 for part, weight in zip(sums, weights, strict=True))
    return value, math.sqrt(squares * number / (number - 1)) / total


def interval_95(values: Sequence[float], samples: int) -> tuple[float, float]:
    """95% confidence interval of the mean of ``values`` (0 to 1, one for each problem; ``samples`` answers in all).

    With one answer per problem, it is Wilson's score interval. The usual mean ± 1.96 standard errors is not used: it ends
    at 0 ± 0 for a model that solves nothing, and leaves the range from 0 to 1 near its ends.

    With several answers per problem, each problem counts as one draw, because its answers resemble each other. The result
    is Wilson's interval for the number of independent answers that would have the same standard error (effective sample
    size, n = p (1 - p) / se²: Kish 1965; for Wilson's interval, Dean and Pagano 2015). It uses no random numbers and stays
    correct near 0 and 1, where a bootstrap over problems would have nothing to draw from. n is at least the number of
    problems and at most the number of answers.
    """
    mean = fmean(values)
    variance, spread = mean * (1 - mean), standard_error(values) ** 2
    effective = variance / spread if spread else math.inf if variance else len(values)
    return _wilson(mean, min(max(effective, len(values)), max(samples, len(values))))


def measured_interval(value: float, error: float | None, number: int | None = None) -> tuple[float, float] | None:
    """95% confidence interval of a number that comes with its standard ``error``; None if there is none.

    Wilson's where ``value`` is the share of right answers of ``number`` (the error then is sqrt(p (1 - p) / (n - 1))),
    else value ± 1.96 errors. An error of zero means that all were alike, not that the value is certain.
    """
    if error is None:
        return None
    is_share = number is not None and number > 1 and 0 <= value <= 1
    if is_share and math.isclose(error**2 * (number - 1), value * (1 - value), rel_tol=1e-3, abs_tol=1e-9):  # type: ignore[operator]
        return _wilson(value, float(number or 0))
    return (value - Z_95 * error, value + Z_95 * error) if error else None


def _wilson(mean: float, number: float) -> tuple[float, float]:
    scale = 1 + Z_95**2 / number
    middle = (mean + Z_95**2 / (2 * number)) / scale
    half = Z_95 / scale * math.sqrt(max(0.0, mean * (1 - mean)) / number + Z_95**2 / (4 * number**2))
    return max(0.0, min(middle - half, mean)), min(1.0, max(middle + half, mean))


def paired_test(changes: Sequence[Fraction]) -> float:
    """Two-sided exact p-value of the changes (one for each problem: rate of one model minus that of another) against
    the hypothesis that each could as well have had the opposite sign (Fisher's randomisation test for pairs).

    With one answer per problem, every change is -1, 0 or 1, and this is McNemar's exact test. With several, it also counts
    how much a problem changed, as the mean does and the sign test does not.
    """
    unit = min(math.lcm(*(change.denominator for change in changes)), FINEST)
    steps = [abs(round(change * unit)) for change in changes]
    observed = abs(sum(round(change * unit) for change in changes))
    total = sum(steps)
    chance = np.zeros(2 * total + 1)  # of every sum from -total to total
    chance[total] = 1.0
    for step in steps:
        if step:
            chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2  # what is rolled around the ends is 0
    return float(min(1.0, chance[:total - observed + 1].sum() + chance[total + observed:].sum())) if observed else 1.0
