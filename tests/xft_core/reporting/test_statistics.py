"""Intervals and tests, compared with their definitions: formulas, all outcomes, and sampled data."""

import itertools
import math
import random
from fractions import Fraction

import pytest

from xft_core.reporting.statistics import interval_95, measured_interval, paired_test, standard_error


@pytest.mark.parametrize(("passed", "total", "low", "high"), [
    # Wilson's interval as in published tables (Newcombe 1998, table I, method 3).
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_one_sample_a_problem_is_wilsons_interval(passed: int, total: int, low: float, high: float) -> None:
    values = [1.0] * passed + [0.0] * (total - passed)
    assert interval_95(values, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = interval_95([1 - value for value in values], total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("samples", [1, 10])
@pytest.mark.parametrize("shape", [(0.15, 3.0), (0.6, 0.6), (30.0, 1.0)])
def test_95_of_100_intervals_hold_what_they_are_about(samples: int, shape: tuple[float, float]) -> None:
    """Problems are drawn from a population whose mean solve rate is known: near 0, in the middle, near 1."""
    draw = random.Random(0)
    truth = shape[0] / sum(shape)
    held = 0
    for _ in range(400):
        rates = [draw.betavariate(*shape) for _ in range(100)]
        values = [sum(draw.random() < rate for _ in range(samples)) / samples for rate in rates]
        low, high = interval_95(values, samples * len(values))
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.99


def test_more_samples_of_the_same_problems_do_not_feign_certainty() -> None:
    values = [1.0] * 50 + [0.0] * 50
    assert interval_95(values, 100) == interval_95(values, 1000)
    # If problems differ by no more than chance, the answers count one by one.
    low, high = interval_95([0.5] * 100, 1000)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 1000), rel=0.01)


def test_nothing_solved_is_not_certainty() -> None:
    low, high = interval_95([0.0] * 40, 400)
    assert low == 0 and high == pytest.approx(0.0876, abs=1e-4)
    assert standard_error([0.0] * 40) == 0


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 0), (3, 3), (8, 1), (12, 25), (300, 250)])
def test_one_sample_a_problem_is_mcnemars_exact_test(better: int, worse: int) -> None:
    changes = [Fraction(1)] * better + [Fraction(-1)] * worse + [Fraction(0)] * 7
    total = better + worse
    binomial = sum(math.comb(total, count) for count in range(min(better, worse) + 1)) / 2**total
    assert paired_test(changes) == pytest.approx(min(1, 2 * binomial))
    assert paired_test([-change for change in changes]) == paired_test(changes)


def test_several_samples_are_counted_over_all_signs() -> None:
    changes = [Fraction(*pair) for pair in ((3, 10), (-1, 10), (7, 9), (1, 2), (0, 1), (-2, 5), (9, 10), (4, 5))]
    sums = [
        abs(sum((sign * change for sign, change in zip(signs, changes, strict=True)), Fraction()))
        for signs in itertools.product((1, -1), repeat=len(changes))]
    expected = sum(value >= abs(sum(changes, Fraction())) for value in sums) / len(sums)
    assert 0 < expected < 1
    assert paired_test(changes) == pytest.approx(expected)


def test_many_ungraded_answers_cost_no_minutes() -> None:
    draw = random.Random(1)
    changes = [Fraction(draw.randint(-9, 12), graded) for graded in range(20, 200)]
    assert math.lcm(*(change.denominator for change in changes)) > 10**20
    assert 0 < paired_test(changes) < 1


def test_intervals_of_numbers_that_come_with_a_standard_error() -> None:
    error = math.sqrt(0.3 * 0.7 / 9)
    assert measured_interval(0.3, error, 10) == pytest.approx(interval_95([1.0] * 3 + [0.0] * 7, 10))  # a share: Wilson's
    assert measured_interval(0.0, 0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert measured_interval(0.3, 0.01, 10) == pytest.approx((0.2804, 0.3196), abs=1e-4)  # not a share of ten
    assert measured_interval(1.2, 0.1) == pytest.approx((1.004, 1.396), abs=1e-3)
    assert measured_interval(1.2, 0.0) is None and measured_interval(1.2, None) is None
