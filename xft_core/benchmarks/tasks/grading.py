"""Verdicts on answers to a task's problems. Each answer gets two sandboxes. One runs it (the grader's ``execute``), without
the fields that hold the right answer; the other never runs it and reaches the verdict (``judge``). The output of the first
is not parsed here, but passed to the second as text.
"""

import ast
import json
import signal
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xft_core.benchmarks.benchmark import NOT_GRADED, Grader, Verdict
from xft_core.benchmarks.tasks import contained
from xft_core.benchmarks.tasks.benchmark import Problem
from xft_core.errors import DataError, SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import OUTPUT_BYTES, REMEDY, Finished, PythonProgram, Resources, open_sandbox

PROGRAM = PythonProgram(Path(contained.__file__).read_text(encoding="utf-8"))
PACKAGES = str(Path(sysconfig.get_path("purelib")).resolve())
CLOCK_FACTOR, SPARE_SECONDS = 5, 10  # the limit is processor time; the clock only gives a distant bound
PROCESSOR_TIME_IS_UP = (128 + signal.SIGXCPU, -signal.SIGXCPU, 128 + signal.SIGKILL, -signal.SIGKILL)
NO_ANSWER = ""


class TaskGrader(Grader[Problem]):
    """Grades with a task's grader. Raises SandboxError if there is no sandbox, if the right answer to the task's first problem
    fails, or if an empty answer passes."""

    def __init__(
        self, config: EvaluateConfig, grader: str, secret: frozenset[str], seconds: float, hidden: Sequence[Path],
        first: Problem, reference: str,
    ) -> None:
        self._grader, self._secret, self._seconds = grader, secret, seconds
        self._memory_mb, self._first, self._reference = config.memory_limit_mb, first, reference
        self._executes = any(isinstance(part, ast.FunctionDef) and part.name == "execute" for part in _parsed(grader).body)
        self._sandbox = open_sandbox(config.sandbox, hidden=hidden)
        self.check()

    def grade(self, problem: Problem, samples: list[str], alone: bool = False) -> list[Verdict]:
        """See Grader. Identical samples are graded once."""
        verdicts = {sample: self._verdict(problem, sample, alone) for sample in dict.fromkeys(samples)}
        return [verdicts[sample] for sample in samples]

    def check(self) -> None:
        """See Grader."""
        for name, answer, status in (("right", self._reference, "pass"), ("missing", NO_ANSWER, "fail")):
            found = self._verdict(self._first, answer, alone=True)
            if found.plus != status:
                raise SandboxError(
                    f"Grading this task does not work: the {name} answer to its first problem, {self._first.task_id!r}, got "
                    f"{found.plus!r} (sandbox {self._sandbox.mode}, memory limit {self._memory_mb} MB): "
                    f"{found.detail or 'no message'}. Are the row's response and the grader right? {REMEDY}")

    def facts(self) -> dict[str, Any]:
        """See Grader."""
        return {"sandbox": self._sandbox.mode, "limits": {"seconds": self._seconds, "memory_limit_mb": self._memory_mb}}

    def stop(self) -> None:
        """See Grader."""
        self._sandbox.stop.set()

    def _verdict(self, problem: Problem, answer: str, alone: bool) -> Verdict:
        output = answer
        if self._executes:
            seen = {name: value for name, value in problem.row.items() if name not in self._secret}
            done = self._run("execute", seen, {"answer": answer})
            if done.status != 0:
                return self._ended(done, alone)
            if len(done.stdout) >= OUTPUT_BYTES:
                return Verdict("fail", "fail", f"its return value is longer than {OUTPUT_BYTES} bytes")
            output = done.stdout.decode(errors="replace")
        done = self._run("judge", problem.row, {"output": output, "is_json": self._executes})
        try:
            found = json.loads(done.stdout) if done.status == 0 else None
        except ValueError:
            found = None
        if found is None:
            return replace(NOT_GRADED, detail=f"the judge ended without a verdict: {_last_line(done) or 'no message'}")
        base, plus = ("pass" if found[tests] else "fail" for tests in ("base", "plus"))
        return Verdict(base, plus, found["detail"], found["score"])  # type: ignore[arg-type]

    def _ended(self, done: Finished, alone: bool) -> Verdict:
        if done.status == contained.GRADER_FAILED:
            return replace(NOT_GRADED, detail=_last_line(done))
        if done.status in PROCESSOR_TIME_IS_UP:
            return Verdict("timeout", "timeout", f"it does not end within {self._seconds:g} s")
        if done.status is None:
            late = f"not done, nor out of processor time, after {self._clock():g} s"
            return Verdict("timeout", "timeout", late) if alone else replace(NOT_GRADED, detail=late)
        return Verdict("fail", "fail", _last_line(done) or f"its program ended with status {done.status}")

    def _run(self, function: str, fields: dict[str, Any], what: dict[str, Any]) -> Finished:
        job = {"grader": self._grader, "function": function, "problem": fields, "seconds": self._seconds,
               "packages": PACKAGES, **what}
        memory = self._memory_mb * 2**20
        return self._sandbox.run(
            PROGRAM, self._clock(), stdin=json.dumps(job).encode(),
            resources=Resources(memory_bytes=memory, resident_bytes=memory))

    def _clock(self) -> float:
        return CLOCK_FACTOR * self._seconds + SPARE_SECONDS


def _parsed(grader: str) -> ast.Module:
    try:
        return ast.parse(grader)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"The task's grader is not valid Python: {error}.") from None


def _last_line(done: Finished) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
