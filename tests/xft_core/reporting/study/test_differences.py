"""Paired differences over seeds and rows, compared with closed forms and simulations."""

import numpy as np
import pytest

from xft_core.reporting.study.differences import _draws, holm, paired_difference, power


def made(
    seeds: int, rows: int, effect: float, of_seed: float, of_row: float, number: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Create losses of two arms whose difference per token is ``effect`` with the given deviations, and token counts."""
    generator = np.random.default_rng(number)
    tokens_R = generator.integers(20, 60, rows)
    other_SR = generator.normal(0.5, 0.2, (seeds, rows)) * tokens_R
    shift_SR = effect + generator.normal(0, of_seed, (seeds, 1)) + generator.normal(0, of_row, (1, rows))
    return other_SR + shift_SR * tokens_R, other_SR, tokens_R


def test_the_mean_is_per_token_and_seed_by_seed() -> None:
    loss = np.array([[3.0, 5.0], [4.0, 6.0]])
    found = paired_difference(loss, np.array([[2.0, 2.0], [4.0, 2.0]]), np.array([1, 3]), 0, draws=200)
    assert found.of_seeds == [1.0, 1.0] and found.mean == 1.0


def test_a_constant_difference_is_certain() -> None:
    loss, other, tokens = made(5, 100, -0.01, 0, 0, 1)
    found = paired_difference(loss, other, tokens, 0, draws=1000)
    assert found.low == pytest.approx(-0.01) and found.high == pytest.approx(-0.01) and found.p_value == 1 / 1000


def test_swapping_the_arms_turns_the_sign_and_nothing_else() -> None:
    loss, other, tokens = made(5, 200, -0.004, 0.002, 0.05, 2)
    one, two = paired_difference(loss, other, tokens, 3), paired_difference(other, loss, tokens, 3)
    assert (two.mean, two.low, two.high) == pytest.approx((-one.mean, -one.high, -one.low)) and two.p_value == one.p_value


def test_the_same_random_seed_gives_the_same_interval() -> None:
    loss, other, tokens = made(3, 50, 0.01, 0.01, 0.05, 4)
    assert paired_difference(loss, other, tokens, 7) == paired_difference(loss, other, tokens, 7)
    assert paired_difference(loss, other, tokens, 7) != paired_difference(loss, other, tokens, 8)


@pytest.mark.parametrize(("of_seed", "of_row"), [(0.01, 0.0), (0.0, 0.1), (0.005, 0.05)])
def test_the_interval_is_as_wide_as_seeds_and_rows_make_it(of_seed: float, of_row: float) -> None:
    widths = []
    for number in range(20):
        loss, other, tokens = made(8, 400, 0, of_seed, of_row, 100 + number)
        found = paired_difference(loss, other, tokens, number, draws=2000)
        widths.append((found.high - found.low) / 2 / 1.96)
    expected = np.sqrt(of_seed**2 / 8 + of_row**2 / 400)
    assert 0.8 * expected < np.mean(widths) < 1.2 * expected


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_holds_the_whole_variance_of_few_seeds(seeds: int) -> None:
    """Rows are all alike, so only the seeds count: the draws' variance is the sample variance over the number of seeds."""
    of_seed_S = np.random.default_rng(seeds).normal(0, 0.01, seeds)
    tokens_R = np.full(20, 10)
    drawn = _draws(of_seed_S[:, None] * tokens_R, tokens_R.astype(float), 0, 20_000)
    assert drawn.var() == pytest.approx(of_seed_S.var(ddof=1) / seeds, rel=0.05)


@pytest.mark.parametrize(("rows", "least"), [(1, 1.0), (3, 0.25), (6, 1 / 32), (40, 1e-4)])
def test_few_rows_cannot_make_a_difference_certain(rows: int, least: float) -> None:
    loss, other, tokens = made(3, rows, -0.05, 0, 0.001, rows)
    assert paired_difference(loss, other, tokens, 0).p_value == least


@pytest.mark.slow
def test_no_difference_is_found_rarely_where_there_is_none() -> None:
    found = 0
    for number in range(200):
        loss, other, tokens = made(10, 300, 0, 0.004, 0.05, 1000 + number)
        result = paired_difference(loss, other, tokens, number, draws=500)
        found += not result.low <= 0 <= result.high
    assert found <= 24  # 10 expected; more than 24 has a chance below 1 in 10,000


@pytest.mark.parametrize("change", ["shape", "infinite", "empty row"])
def test_what_cannot_be_compared_is_refused(change: str) -> None:
    loss, other, tokens = made(2, 10, 0, 0, 0, 1)
    if change == "shape":
        loss = loss[:, :-1]
    elif change == "infinite":
        loss[0, 0] = np.inf
    else:
        tokens[3] = 0
    with pytest.raises(ValueError):
        paired_difference(loss, other, tokens, 0)


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.slow
def test_power_is_that_of_a_simulation() -> None:
    stated = power(-0.006, 8, 400, 0.004, 0.05)
    hits = 0
    for number in range(200):
        loss, other, tokens = made(8, 400, -0.006, 0.004, 0.05, 5000 + number)
        result = paired_difference(loss, other, tokens, number, draws=400)
        hits += result.high < 0
    assert stated == pytest.approx(hits / 200, abs=0.1)
    assert power(0, 5, 100, 0.01, 0.1) == pytest.approx(0.05) and power(1, 5, 100, 0.01, 0.1) == pytest.approx(1)
