"""How often the 95% interval of a claim covers the true difference: ``python -m performance.study.coverage [--studies 300]``.

Simulates studies without any difference. A row's difference at a seed is the sum of an effect of the seed, one of the row and
one of both, all normal. ``deviation`` is the standard deviation of a seed's effect divided by the standard error that the rows
alone give: 0 if another training changes nothing, 4 if almost all uncertainty comes from the training.
"""

import argparse

import numpy as np

from performance.side_by_side import print_heading, print_table
from xft_core.reporting.study.differences import paired_difference

ROWS, TOKENS, DRAWS = 100, 50, 1000
SEEDS, DEVIATIONS = (2, 3, 4, 5, 10), (0.0, 1.0, 4.0)
ROW_DEVIATION = 0.07  # nats per token; half of the variance is the row's at every seed, half its own at each seed


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300, help="simulated studies for each cell")
    options = parser.parse_args()
    print_heading(f"coverage of 95% intervals, {options.studies} studies of {ROWS} rows for each cell")
    print_table(
        ["seeds", *(f"deviation {deviation:g}" for deviation in DEVIATIONS)],
        [[seeds, *(f"{coverage(seeds, deviation, options.studies):.0%}" for deviation in DEVIATIONS)] for seeds in SEEDS])


def coverage(seeds: int, deviation: float, studies: int) -> float:
    """The share of simulated studies whose interval covers zero, the true difference."""
    generator = np.random.default_rng([seeds, round(10 * deviation)])
    part = ROW_DEVIATION / np.sqrt(2)
    error_of_rows = ROW_DEVIATION / np.sqrt(ROWS)
    covered = 0
    for number in range(studies):
        of_seed_S1 = generator.normal(0, deviation * error_of_rows, (seeds, 1))
        difference_SR = of_seed_S1 + generator.normal(0, part, (1, ROWS)) + generator.normal(0, part, (seeds, ROWS))
        tokens_R = np.full(ROWS, TOKENS)
        found = paired_difference(difference_SR * tokens_R, np.zeros_like(difference_SR), tokens_R, number, DRAWS)
        covered += found.low <= 0 <= found.high
    return covered / studies


if __name__ == "__main__":
    main()
