"""BigCodeBench's form (Zhuo et al. 2024): task_id, complete_prompt, instruct_prompt, test (a unittest.TestCase) and
entry_point; optionally code_prompt and canonical_solution.

A base model completes complete_prompt; a tuned model gets instruct_prompt, and its answer begins with code_prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind
from xft_core.benchmarks.evalplus import prompts
from xft_core.benchmarks.programs.rows import program_problem, shown
from xft_core.benchmarks.prompts import code_prompt, cut
from xft_core.benchmarks.tasks.benchmark import Problem
from xft_core.errors import DataError
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText

TEXTS = ("complete_prompt", "instruct_prompt", "test", "entry_point")
OPTIONAL = ("code_prompt", "canonical_solution")
SECONDS = 60.0
CANARY = Problem("canary", {"entry_point": "f", "test": (
    "import unittest\nclass TestCases(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), 2)\n")})
RIGHT = "def f(x):\n    return x + 1\n"


class BigCodeBench(Kind[Problem]):
    """See the module; graders/unittests.py grades."""

    name = "BigCodeBench"
    fields = frozenset({"task_id", *TEXTS})
    extended_tests = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor"})

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """See Kind."""
        for name in OPTIONAL:
            if not isinstance(row.get(name, ""), str):
                raise DataError(f"{where}: {name} is {shown(row[name])}. Give a text, or leave it out.")
        if "TestCase" not in str(row.get("test", "TestCase")):
            raise DataError(f"{where}: test has no unittest.TestCase, which BigCodeBench's form needs.")
        return program_problem(row, TEXTS, where)

    def build_prompt(self, problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind."""
        return code_prompt(problem.row["instruct_prompt"], _begun(problem, style), "python", style, tokenizer)

    def stops(self, problems: Sequence[Problem], style: str) -> tuple[str, ...]:
        """See Kind."""
        return prompts.STOPS[style]

    def solution(self, problem: Problem, completion: str, style: str) -> str:
        """See Kind."""
        return _begun(problem, style) + cut(completion, prompts.STOPS[style])

    def texts(self, problem: Problem) -> tuple[str, str]:
        """See Kind."""
        return problem.row["instruct_prompt"], problem.row.get("canonical_solution", "")

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Problem]:
        """See Kind."""
        from xft_core.benchmarks.programs.grading import UnitTestGrader

        return UnitTestGrader(config, "unittests", OPTIONAL[1:], SECONDS, benchmark, CANARY, RIGHT)


def _begun(problem: Problem, style: str) -> str:
    code = problem.row["complete_prompt"] if style == "completion" else problem.row.get("code_prompt", "")
    return prompts.begun(code) if code.strip() else ""
