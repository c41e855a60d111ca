"""Whether one model's loss is below another's, over seeds and rows: paired differences with a bootstrap over both.

Every seed trains each arm once, and every arm is measured on the same rows: seeds and rows are crossed. A difference is
uncertain in both, so the bootstrap draws seeds and rows, each with replacement, independently of each other (the
two-way, "pigeonhole" bootstrap: Owen, Annals of Applied Statistics 2007). An interval over rows alone would not cover another
training, and one over seeds alone would not cover other data.

A bootstrap of S seeds has only (S - 1) / S of their variance: half of it with two seeds. So each draw's deviation from the
mean of the seeds is stretched by sqrt(S / (S - 1)). The same stretch for hundreds of rows would change nothing.
`python -m performance.study.coverage` measures how often the interval covers the truth.

Shape suffixes: S seeds, R rows, B draws.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 10_000
CONFIDENCE = 0.95
DRAWS_AT_ONCE = 500  # of the bootstrap: 500 x 1,000 rows of fp64 are 4 MB


@dataclass(frozen=True)
class Difference:
    """Mean loss of one arm minus that of another, in nats per response token. ``low`` and ``high``: 95% interval over
    seeds and rows; ``p_value``: two-sided, against no difference; ``of_seeds``: the difference seed by seed."""

    mean: float
    low: float
    high: float
    p_value: float
    of_seeds: list[float]


def paired_difference(
    loss_SR: np.ndarray, other_SR: np.ndarray, tokens_R: np.ndarray, random_seed: int, draws: int = DRAWS,
) -> Difference:
    """``loss`` minus ``other``. Both hold each row's summed loss (nats) for each seed; ``tokens_R``: the rows' response tokens.

    The mean is per token, as the held-out loss is: the rows' summed differences over their summed tokens. The p-value is
    twice the share of draws on the other side of zero. It is at least 1 / ``draws``, which is what the bootstrap can resolve,
    and at least 2 / 2^R: without any difference, R rows have the same sign that often.
    With one seed, only rows are drawn, and the interval does not cover another training (see ``of_seeds``).

    Raises ValueError for shapes that do not fit, or numbers that are not finite.
    """
    if loss_SR.ndim != 2 or loss_SR.shape != other_SR.shape or tokens_R.shape != loss_SR.shape[1:] or not loss_SR.size:
        raise ValueError(f"losses of {loss_SR.shape} and {other_SR.shape} with tokens of {tokens_R.shape} cannot be compared")
    if not (np.isfinite(loss_SR).all() and np.isfinite(other_SR).all() and (tokens_R > 0).all()):
        raise ValueError("a loss is not finite, or a row has no tokens")
    difference_SR = loss_SR.astype(np.float64) - other_SR.astype(np.float64)
    of_seeds = difference_SR.sum(1) / tokens_R.sum()
    drawn = _draws(difference_SR, tokens_R.astype(np.float64), random_seed, draws)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    one_sided = min((drawn >= 0).mean(), (drawn <= 0).mean())
    least = max(1 / draws, 2.0 ** (1 - len(tokens_R)))
    return Difference(
        mean=float(of_seeds.mean()), low=float(low), high=float(high),
        p_value=float(min(1.0, max(2 * one_sided, least))), of_seeds=[float(value) for value in of_seeds])


def _draws(difference_SR: np.ndarray, tokens_R: np.ndarray, random_seed: int, draws: int) -> np.ndarray:
    """Means per token of ``draws`` resamples of seeds and of rows. A resample is how often each is drawn; that of the seeds is
    stretched (see above)."""
    generator = np.random.default_rng(random_seed)
    num_seeds, num_rows = difference_SR.shape
    stretch = math.sqrt(num_seeds / (num_seeds - 1)) if num_seeds > 1 else 1.0
    found = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, draws - start)
        times_BS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), count)
        weight_BS = 1 + stretch * (times_BS - 1)
        times_BR = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), count)
        sums_B = ((weight_BS @ difference_SR) * times_BR).sum(1) / num_seeds
        found.append(sums_B / (times_BR @ tokens_R))
    return np.concatenate(found)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for multiple claims (Holm, Scandinavian Journal of Statistics 1979), in the same order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def power(effect: float, num_seeds: int, num_rows: int, seed_deviation: float, row_deviation: float) -> float:
    """The probability that a true difference of ``effect`` gives an interval that excludes zero, stated before the runs.

    ``seed_deviation``: standard deviation of the difference over seeds; ``row_deviation``: of a row's difference per token.
    Normal approximation: the standard error is sqrt(seed_deviation^2 / S + row_deviation^2 / R).
    """
    error = math.sqrt(seed_deviation**2 / num_seeds + row_deviation**2 / num_rows)
    limit = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    shift = abs(effect) / error if error else math.inf
    return NormalDist().cdf(shift - limit) + NormalDist().cdf(-shift - limit)
