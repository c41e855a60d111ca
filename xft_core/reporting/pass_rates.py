"""The results of one evaluation, problem by problem, and of two side by side."""

import math
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean, stdev

from xft_core.benchmarks.pass_at_k import pass_at_k
from xft_core.reporting.statistics import interval_95, paired_test
from xft_core.runtime.quantities import fixed, signed
from xft_core.store.results.evaluate import NOT_GRADED, EvaluationFile

Counts = dict[str, tuple[int, int]]

CLEAR, HINT = 0.05, 0.2  # p-values up to which a difference counts as clear, and as a hint
MCNEMAR, RANDOMISATION = "McNemar's exact test", "paired randomisation test"


def counts(results: EvaluationFile, tests: str) -> Counts:
    """(samples that passed ``tests``, samples that were graded) of every problem of a results.json, by task_id. A
    problem without a graded sample is left out."""
    found = {}
    for problem in results.problems:
        verdicts = [verdict for sample in problem.samples if (verdict := sample.verdict(tests)) != NOT_GRADED]
        if verdicts:
            found[problem.task_id] = verdicts.count("pass"), len(verdicts)
    return found


@dataclass(frozen=True)
class PassRate:
    """pass@k as fractions: the mean over problems, and its 95% interval over the choice of problems (see statistics.py)."""

    value: float
    low: float
    high: float


def pass_rate(of_problems: Counts, k: int) -> PassRate | None:
    """pass@k; None if a problem has fewer samples than ``k``, or if there are no problems."""
    if not of_problems or min(graded for _, graded in of_problems.values()) < k:
        return None
    values = [pass_at_k(graded, passed, k) for passed, graded in of_problems.values()]
    low, high = interval_95(values, sum(graded for _, graded in of_problems.values()))
    return PassRate(fmean(values), low, high)


@dataclass(frozen=True)
class Pair:
    """pass@1 of one evaluation minus that of another, over the problems that both answered.

    ``better_on`` and ``worse_on``: task ids that the first solves more often, and less often, than the second (with one
    sample each: that only one of the two solves). ``both`` and ``neither``: number of problems that all samples of both solve,
    and that no sample of either solves. ``p_value``: two-sided, of ``test``.
    """

    problems: int
    difference: float
    standard_error: float | None
    better_on: list[str]
    worse_on: list[str]
    both: int
    neither: int
    test: str
    p_value: float


def pair(first: Counts, second: Counts) -> Pair | None:
    """Two evaluations of one benchmark side by side; None if they share no problem."""
    common = [task_id for task_id in first if task_id in second]
    if not common:
        return None
    rates = [(Fraction(*first[task_id]), Fraction(*second[task_id])) for task_id in common]
    changes = [one - other for one, other in rates]
    values = [float(change) for change in changes]
    is_single = all(counts[task_id][1] == 1 for counts in (first, second) for task_id in common)
    return Pair(
        problems=len(common), difference=fmean(values),
        standard_error=stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        better_on=[task_id for task_id, change in zip(common, changes, strict=True) if change > 0],
        worse_on=[task_id for task_id, change in zip(common, changes, strict=True) if change < 0],
        both=rates.count((Fraction(1), Fraction(1))), neither=rates.count((Fraction(0), Fraction(0))),
        test=MCNEMAR if is_single else RANDOMISATION, p_value=paired_test(changes))


def rate_text(rate: PassRate, not_graded: int = 0) -> str:
    """In %, with its interval: ``50.0 [35.2, 64.8]``; and how many answers could not be graded, if any."""
    text = f"{fixed(100 * rate.value, 1)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return text + not_graded_text(not_graded)


def not_graded_text(number: int) -> str:
    """The note after a score that does not count ``number`` answers."""
    return f" ({number} not graded)" if number else ""


def points_text(difference: float) -> str:
    """A difference of two fractions, in points: ``+2.5``."""
    return signed(100 * difference, 1)


def p_text(p_value: float) -> str:
    """A p-value for display, with two significant digits."""
    return f"{p_value:.2f}" if p_value >= 0.095 else "< 0.0001" if p_value < 0.0001 else f"{p_value:.2g}"


def certainty(p_value: float) -> str:
    """A p-value in words."""
    if p_value > HINT:
        return "no difference can be claimed"
    return "only a hint" if p_value > CLEAR else "more than the choice of problems explains"
