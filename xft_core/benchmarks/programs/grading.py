"""Graders of programs: task graders with their own canary, since not every file contains a right answer."""

import importlib.util
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xft_core.benchmarks.benchmark import Verdict
from xft_core.benchmarks.programs import graders
from xft_core.benchmarks.tasks.benchmark import Problem
from xft_core.benchmarks.tasks.grading import TaskGrader
from xft_core.errors import DataError
from xft_core.recipe.sections import EvaluateConfig

IMPORTED = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)


class ProgramGrader(TaskGrader):
    """Grades with a module of graders/. ``canary``: a problem with a known right answer, ``right``."""

    def __init__(
        self, config: EvaluateConfig, name: str, secret: Sequence[str], seconds: float, benchmark: Path, canary: Problem,
        right: str,
    ) -> None:
        source = Path(str(graders.__file__)).with_name(f"{name}.py").read_text(encoding="utf-8")
        super().__init__(config, source, frozenset(secret), seconds, [benchmark], canary, right)


class CheckedGrader(ProgramGrader):
    """Grades HumanEval's form. Before grading, it records the calls that the tests make, once for each problem."""

    def __init__(self, *arguments: Any) -> None:
        self._calls: dict[str, Any] = {}
        super().__init__(*arguments)

    def ungradable(self, problem: Problem) -> str | None:
        """See Grader. Raises DataError if the file's own reference does not pass."""
        self._recorded(problem)
        return None

    def _verdict(self, problem: Problem, answer: str, alone: bool) -> Verdict:
        return super()._verdict(replace(problem, row=problem.row | {"calls": self._recorded(problem)}), answer, alone)

    def _recorded(self, problem: Problem) -> Any:
        if problem.task_id not in self._calls:
            done = self._run("execute", problem.row, {"answer": problem.row["prompt"] + problem.row["canonical_solution"]})
            if done.status != 0 or not done.stdout:
                reason = self._ended(done, alone=True).detail
                raise DataError(
                    f"The problem {problem.task_id!r} cannot be graded: its tests do not pass with its own canonical_solution "
                    f"({reason}). Correct the file, or remove the problem.")
            self._calls[problem.task_id] = json.loads(done.stdout)["output"]
        return self._calls[problem.task_id]


class UnitTestGrader(ProgramGrader):
    """Grades BigCodeBench's form. Each run gets its own secret word."""

    def ungradable(self, problem: Problem) -> str | None:
        """See Grader. It depends on the imports of the problem's tests and reference, never on an answer."""
        texts = "\n".join(str(problem.row.get(name, "")) for name in ("complete_prompt", "canonical_solution", "test"))
        missing = sorted(name for name in set(IMPORTED.findall(texts)) if importlib.util.find_spec(name) is None)
        return f"it needs {', '.join(missing)}, which is not installed here" if missing else None

    def _verdict(self, problem: Problem, answer: str, alone: bool) -> Verdict:
        return super()._verdict(replace(problem, row=problem.row | {"word": secrets.token_hex(16)}), answer, alone)
