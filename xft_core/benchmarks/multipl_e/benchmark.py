"""MultiPL-E as a kind of benchmark: programs in one of twelve languages, judged by tests in the same language."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind, NotGradable
from xft_core.benchmarks.multipl_e import programs
from xft_core.benchmarks.multipl_e.problems import FIELDS, Problem, parse_problem
from xft_core.benchmarks.multipl_e.toolchains import find_toolchain
from xft_core.benchmarks.prompts import INSTRUCTION, code_prompt
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText


class MultiPLE(Kind[Problem]):
    """See problems.py for the form, programs.py for what is graded, languages.py and grading.py for verdicts."""

    name = "MultiPL-E"
    fields = frozenset(FIELDS)
    extended_tests = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor"})

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """See Kind."""
        return parse_problem(row, where)

    def build_prompt(self, problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind. The prompt has no white space at its end, as in MultiPL-E's own harness."""
        code, language = problem.prompt.rstrip(), problem.language.fence
        return code_prompt(
            INSTRUCTION.format(language=language, statement=code.strip()), code, language, style, tokenizer)

    def stops(self, problems: Sequence[Problem], style: str) -> tuple[str, ...]:
        """See Kind."""
        return tuple(dict.fromkeys(stop for problem in problems for stop in programs.stops(problem, style)))

    def solution(self, problem: Problem, completion: str, style: str) -> str:
        """See Kind."""
        return programs.program(problem, completion, style)

    def texts(self, problem: Problem) -> tuple[str, str]:
        """See Kind. MultiPL-E has no reference solutions."""
        return problem.prompt, ""

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Problem]:
        """See Kind."""
        from xft_core.benchmarks.multipl_e.grading import MultiPLEGrader

        return MultiPLEGrader(config, self._first(benchmark).language)

    def versions(self, benchmark: Path, config: EvaluateConfig) -> dict[str, str | None]:
        """See Kind."""
        try:
            return {"toolchain": find_toolchain(self._first(benchmark).language).version}
        except NotGradable:
            return {"toolchain": None}

    def labels(self, problems: Sequence[Problem]) -> dict[str, str]:
        """See Kind."""
        return {"language": problems[0].language.name}

    def _first(self, benchmark: Path) -> Problem:
        number, row = next(read_jsonl(benchmark))
        return self.problem(row, where=f"{str(benchmark)!r}, line {number}")
