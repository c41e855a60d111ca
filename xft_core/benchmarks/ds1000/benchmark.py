"""DS-1000 as a kind of benchmark: code for seven data-science libraries, judged by each problem's own tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind
from xft_core.benchmarks.ds1000 import prompts
from xft_core.benchmarks.ds1000.environment import find_environment
from xft_core.benchmarks.ds1000.problems import Problem, parse_problem
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText


class DS1000(Kind[Problem]):
    """See problems.py for the form, prompts.py for how a model is asked, environment.py and grading.py for verdicts."""

    name = "DS-1000"
    fields = frozenset({"prompt", "reference_code", "code_context", "metadata"})
    extended_tests = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor"})

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """See Kind."""
        return parse_problem(row, where)

    def build_prompt(self, problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind."""
        return prompts.build_prompt(problem, style, tokenizer)

    def stops(self, problems: Sequence[Problem], style: str) -> tuple[str, ...]:
        """See Kind. They are the same for all problems and styles."""
        return prompts.STOPS

    def solution(self, problem: Problem, completion: str, style: str) -> str:
        """See Kind. The answer alone: the problem's tests insert it where it belongs."""
        return prompts.answer(completion)

    def texts(self, problem: Problem) -> tuple[str, str]:
        """See Kind."""
        return problem.prompt, problem.reference_code

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Problem]:
        """See Kind. Also raises SandboxError, with the command that creates it, if the environment is missing."""
        from xft_core.benchmarks.ds1000.grading import DS1000Grader

        return DS1000Grader(config, find_environment(config.ds1000_environment))

    def versions(self, benchmark: Path, config: EvaluateConfig) -> dict[str, str | None]:
        """See Kind. Raises SandboxError, with the command that creates it, if the environment is missing."""
        return find_environment(config.ds1000_environment).key()

    def groups(self, problem: Problem) -> dict[str, str]:
        """See Kind."""
        return {"library": problem.library, "perturbation": problem.perturbation}
