"""HumanEval's own form, which EvoEval uses (Xia et al. 2024): task_id, prompt, entry_point, canonical_solution, and test, which
defines ``check(candidate)``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind
from xft_core.benchmarks.evalplus import prompts
from xft_core.benchmarks.programs.rows import program_problem
from xft_core.benchmarks.prompts import INSTRUCTION, code_prompt, cut
from xft_core.benchmarks.tasks.benchmark import Problem
from xft_core.errors import DataError
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText

TEXTS = ("prompt", "entry_point", "canonical_solution", "test")
SECONDS = 30.0
CANARY = Problem("canary", {
    "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return (x, x)\n",
    "test": "def check(candidate):\n    assert candidate(2) == (2, 2)\n"})


class EvoEval(Kind[Problem]):
    """See the module; graders/checked.py grades."""

    name = "HumanEval form"
    fields = frozenset({"task_id", *TEXTS})
    extended_tests = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor"})

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """See Kind."""
        problem = program_problem(row, TEXTS, where)
        if "def check(" not in row["test"]:
            raise DataError(f"{where}: test defines no function check(candidate), which HumanEval's form needs.")
        return problem

    def build_prompt(self, problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind. The same prompt as for HumanEval's problems in EvalPlus form."""
        instruction = INSTRUCTION.format(language="python", statement=problem.row["prompt"].strip())
        return code_prompt(instruction, prompts.begun(problem.row["prompt"]), "python", style, tokenizer)

    def stops(self, problems: Sequence[Problem], style: str) -> tuple[str, ...]:
        """See Kind."""
        return prompts.STOPS[style]

    def solution(self, problem: Problem, completion: str, style: str) -> str:
        """See Kind."""
        return prompts.begun(problem.row["prompt"]) + cut(completion, prompts.STOPS[style])

    def texts(self, problem: Problem) -> tuple[str, str]:
        """See Kind."""
        return problem.row["prompt"], problem.row["canonical_solution"]

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Problem]:
        """See Kind."""
        from xft_core.benchmarks.programs.grading import CheckedGrader

        right = CANARY.row["prompt"] + CANARY.row["canonical_solution"]
        return CheckedGrader(config, "checked", ("test", "canonical_solution"), SECONDS, benchmark, CANARY, right)
