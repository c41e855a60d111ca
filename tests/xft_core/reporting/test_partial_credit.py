"""Partial credit and measures of an evaluation, in addition to pass and fail."""

import pytest

from xft_core.reporting.partial_credit import partial_credit
from xft_core.store.results.evaluate import EvaluationFile, GradedProblem, GradedSample


def problem(task_id: str, *samples: GradedSample) -> GradedProblem:
    return GradedProblem(task_id=task_id, samples=list(samples))


def sample(plus: str = "fail", **more: object) -> GradedSample:
    return GradedSample.model_validate({"base": plus, "plus": plus, **more})


def test_a_score_is_the_mean_over_problems_and_what_was_not_graded_counts_for_nothing() -> None:
    found = partial_credit(EvaluationFile(problems=[
        problem("a", sample(score=1.0), sample(score=0.5)), problem("b", sample(score=0.0), sample("timeout")),
        problem("c", sample("infrastructure_error"))]))
    (credit,) = found
    assert credit.name == "mean_score" and credit.value == pytest.approx((0.75 + 0.0) / 2)
    assert credit.interval and 0 <= credit.interval[0] < credit.value < credit.interval[1] <= 1


def test_a_measure_is_what_is_right_out_of_all_there_is() -> None:
    found = partial_credit(EvaluationFile(problems=[
        problem("a", sample(measures={"strict": [1, 1]})), problem("b", sample(measures={"strict": [0, 3]})),
        problem("c", sample())]))
    assert [(credit.name, credit.value) for credit in found] == [("strict", 0.25)]


def test_nothing_is_found_where_nothing_was_scored() -> None:
    assert partial_credit(EvaluationFile(problems=[problem("a", sample("pass"))])) == []
