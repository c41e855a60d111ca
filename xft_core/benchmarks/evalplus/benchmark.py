"""EvalPlus form as a kind of benchmark: Python functions, called on inputs, compared with a reference solution."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind
from xft_core.benchmarks.evalplus import prompts
from xft_core.benchmarks.evalplus.problems import Problem, parse_problem
from xft_core.benchmarks.prompts import cut
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText


class EvalPlus(Kind[Problem]):
    """See problems.py for the form, prompts.py for how a model is asked, grading.py for verdicts."""

    name = "EvalPlus"
    fields = frozenset({"task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input"})
    extended_tests = True

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """See Kind."""
        return parse_problem(row, where)

    def build_prompt(self, problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind."""
        return prompts.build_prompt(problem, style, tokenizer)

    def stops(self, problems: Sequence[Problem], style: str) -> tuple[str, ...]:
        """See Kind. They depend only on the style."""
        return prompts.STOPS[style]

    def solution(self, problem: Problem, completion: str, style: str) -> str:
        """See Kind. The problem's code and the completion up to the stop."""
        return prompts.problem_code(problem) + cut(completion, prompts.STOPS[style])

    def texts(self, problem: Problem) -> tuple[str, str]:
        """See Kind."""
        return problem.prompt, problem.canonical_solution

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Problem]:
        """See Kind."""
        from xft_core.benchmarks.evalplus.grading import EvalPlusGrader

        return EvalPlusGrader(config, benchmark)
