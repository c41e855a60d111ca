"""Verdicts on samples: one contained process a problem runs ``grader_process.py``, with evalplus's own check."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.benchmarks.kind import NOT_GRADED, Grader, Verdict
from xft_core.config import EvaluateConfig
from xft_core.errors import DataError, SandboxError
from xft_core.sandbox import REMEDY, Resources, Sandbox, open_sandbox, python

PROGRAM = Path(__file__).with_name("grader_process.py")

# A last resort: evalplus ends each of the two checks of a sample after 62 s at most by itself, and the slowest
# reference of HumanEval+ and MBPP+ takes 41 s.
PROBLEM_SECONDS, SAMPLE_SECONDS = 120, 130
MAX_PROCESSES = 64
MESSAGE_BYTES = 4096
OWN_LIMITS = Resources(memory_bytes=None, file_bytes=None, processes=None, open_files=None)  # the program sets them

CANARY = Problem(
    task_id="canary", prompt="def add(a, b):\n", entry_point="add", canonical_solution="    return a + b\n",
    base_input=[[1, 2]], plus_input=[[-1, 5], [2.5, 0.25]])
CANARY_SAMPLES = ["def add(a, b):\n    return b + a\n", "def add(a, b):\n    return a - b\n"]


@dataclass(frozen=True)
class Limits:
    """Of one sample: seconds for one input (the larger of ``min_time_limit`` and the reference's own time multiplied by
    ``time_limit_factor``) and memory in MB."""

    min_time_limit: float
    time_limit_factor: float
    memory_limit_mb: int


class EvalPlusGrader(Grader[Problem]):
    """evalplus's check in a sandbox. Raises SandboxError when there is none, or when it does not tell right from wrong."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._limits = Limits(config.min_time_limit, config.time_limit_factor, config.memory_limit_mb)
        self._sandbox = open_sandbox(config.sandbox)
        check_canaries(self._sandbox, self._limits)

    def grade(self, problem: Problem, samples: list[str]) -> list[Verdict]:
        """See Grader. Raises DataError when the problem's own canonical solution fails."""
        return grade(problem, samples, self._sandbox, self._limits)

    def facts(self) -> dict[str, Any]:
        """See Grader."""
        return {"evalplus_version": version("evalplus"), "sandbox": self._sandbox.mode, "limits": asdict(self._limits)}

    def stop(self) -> None:
        """See Grader."""
        self._sandbox.stop.set()


def grade(problem: Problem, samples: list[str], sandbox: Sandbox, limits: Limits) -> list[Verdict]:
    """Verdicts on complete programs that answer ``problem``, in their order.

    A sample without a verdict (the process died or had to be ended) is tried once more, alone, before it is given up as
    an infrastructure error. Raises DataError when the problem's own canonical solution fails.
    """
    verdicts, _ = _attempt(problem, samples, sandbox, limits)
    for index, sample in enumerate(samples):
        if index not in verdicts:
            again, _ = _attempt(problem, [sample], sandbox, limits)
            verdicts[index] = again.get(0, NOT_GRADED)
    return [verdicts[index] for index in range(len(samples))]


def check_canaries(sandbox: Sandbox, limits: Limits) -> None:
    """Grade one program that is right and one that is wrong, so that a machine where nothing can be graded is not taken
    for a bad model. Raises SandboxError when either gets the wrong verdict."""
    verdicts, message = _attempt(CANARY, CANARY_SAMPLES, sandbox, limits)
    if [verdicts.get(0), verdicts.get(1)] != [Verdict("pass", "pass"), Verdict("fail", "fail")]:
        found = [verdicts.get(index, NOT_GRADED).plus for index in (0, 1)]
        raise SandboxError(
            f"Grading does not work on this machine: a right and a wrong program got {found[0]!r} and {found[1]!r} "
            f"(sandbox {sandbox.mode}, memory limit {limits.memory_limit_mb} MB). The grading process said: "
            f"{message or 'nothing'}. Is evalplus installed, and are the limits wide enough? {REMEDY}")


def _attempt(
    problem: Problem, samples: list[str], sandbox: Sandbox, limits: Limits,
) -> tuple[dict[int, Verdict], str]:
    """The verdicts that one process arrived at, by index, and the end of what it complained about."""
    job = {
        "problem": asdict(problem), "samples": samples, "min_time_limit": limits.min_time_limit,
        "time_limit_factor": limits.time_limit_factor, "memory_bytes": limits.memory_limit_mb * 2**20,
        "max_processes": MAX_PROCESSES}
    done = sandbox.run(
        [str(python()), "-P", "-s", "-B", "-c", PROGRAM.read_text(encoding="utf-8")],
        PROBLEM_SECONDS + SAMPLE_SECONDS * len(samples), stdin=json.dumps(job).encode(), resources=OWN_LIMITS)
    return _read(done.stdout.splitlines(), problem), done.stderr[-MESSAGE_BYTES:].decode(errors="replace").strip()


def _read(lines: list[bytes], problem: Problem) -> dict[int, Verdict]:
    verdicts = {}
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a process that died while writing it
            break
        if event.get("reference"):
            raise DataError(
                f"Benchmark problem {problem.task_id!r}: its own canonical_solution fails on its inputs "
                f"({event['reference']}). Mend or remove the problem.")
        if "sample" in event:
            verdicts[event["sample"]] = Verdict(event["base"], event["plus"])
    return verdicts
