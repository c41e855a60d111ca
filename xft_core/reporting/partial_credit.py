"""What an evaluation counts besides pass and fail: how much of an answer is right, and a benchmark's own measures."""

from dataclasses import dataclass

from xft_core.reporting.statistics import measured_interval, ratio
from xft_core.store.results.evaluate import NOT_GRADED, EvaluationFile, GradedProblem

MEAN_SCORE = "mean_score"
TITLES = {MEAN_SCORE: "mean score"}


@dataclass(frozen=True)
class Credit:
    """``value``: a fraction, 0 to 1; ``interval``: 95%, over problems, None for a single one."""

    name: str
    value: float
    interval: tuple[float, float] | None


def partial_credit(results: EvaluationFile) -> list[Credit]:
    """The mean score and every measure of an evaluation. ``mean_score``, if a task measures it, is the mean over problems; an
    answer without a score counts as 0 if others have one. A measure is the number of right items in all answers over their
    total. Problems that could not be graded are not counted."""
    graded = [problem for problem in results.problems if any(sample.plus != NOT_GRADED for sample in problem.samples)]
    samples = [sample for problem in graded for sample in problem.samples]
    found = []
    if any(sample.score is not None for sample in samples):
        found.append(_credit(MEAN_SCORE, [
            (sum(sample.score or 0.0 for sample in problem.samples) / len(problem.samples), 1) for problem in graded]))
    for name in dict.fromkeys(name for sample in samples for name in sample.measures):
        found.append(_credit(name, [pair for problem in graded if (pair := _counted(problem, name))[1]]))
    return found


def _counted(problem: GradedProblem, name: str) -> tuple[float, int]:
    pairs = [sample.measures[name] for sample in problem.samples if name in sample.measures]
    return sum(right for right, _ in pairs), int(sum(total for _, total in pairs))


def _credit(name: str, of_problems: list[tuple[float, int]]) -> Credit:
    """The ratio of sums, with its interval over problems (see statistics.py)."""
    value, error = ratio([right for right, _ in of_problems], [total for _, total in of_problems])
    interval = measured_interval(value, error, len(of_problems))
    return Credit(name, value, (max(0.0, interval[0]), min(1.0, interval[1])) if interval else None)
