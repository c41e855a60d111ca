"""Verdicts on samples of DS-1000, from contained processes, each for one library, that run ``grader_process.py``."""

import json
import re
import select
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from xft_core.benchmarks.benchmark import NOT_GRADED, Grader, Status, Verdict
from xft_core.benchmarks.ds1000.environment import LIBRARIES, WATCHED, Environment, Library
from xft_core.benchmarks.ds1000.grader_process import WALL_FACTOR
from xft_core.benchmarks.ds1000.problems import Problem
from xft_core.errors import SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import REMEDY, Resources, Sandbox, open_sandbox

PROGRAM = Path(__file__).with_name("grader_process.py")

SAMPLE_SECONDS = 120.0  # DS-1000's own limit, here of processor time
START_SECONDS, SPARE_SECONDS = 180.0, 30.0  # to import a library; to clean up after a sample
CANARY_SECONDS = 2.0
PROCESSES, OPEN_FILES = 256, 1024
IMPORTED = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)
ENDED = replace(NOT_GRADED, detail="the process that graded it ended")

CANARY = Problem(
    task_id="canary", prompt="", reference_code="", library="", perturbation="", code_context=(
        'def test_execution(solution):\n    test_env = {"test_input": 2}\n'
        '    code = "[insert]".replace("[insert]", solution)\n    exec(code, test_env)\n'
        '    assert test_env["result"] == 3\n'))
CANARIES = (("result = test_input + 1", "pass"), ("result = test_input", "fail"), ("while True: pass", "timeout"))


class DS1000Grader(Grader[Problem]):
    """DS-1000's tests in a sandbox. Raises SandboxError if there is no sandbox, or if a canary gets a wrong verdict."""

    def __init__(self, config: EvaluateConfig, environment: Environment) -> None:
        self._environment, self._memory_limit_mb = environment, config.memory_limit_mb
        self._sandbox = open_sandbox(config.sandbox, mounts=environment.mounts)
        self._lock, self._idle = threading.Lock(), list[Process]()
        self._missing: frozenset[str] = frozenset()
        self.check()

    def grade(self, problem: Problem, samples: list[str], alone: bool = False) -> list[Verdict]:
        """See Grader."""
        return self._grade(problem, samples, SAMPLE_SECONDS, alone)

    def check(self) -> None:
        """See Grader."""
        found = self._grade(CANARY, [text for text, _ in CANARIES], CANARY_SECONDS, alone=True)
        if [verdict.base for verdict in found] != [status for _, status in CANARIES]:
            self.stop()
            raise SandboxError(
                "Grading DS-1000 does not work on this machine: a right, a wrong and an endless program got "
                f"{', '.join(verdict.base for verdict in found)} (sandbox {self._sandbox.mode}, memory limit "
                f"{self._memory_limit_mb} MB). {REMEDY}")

    def ungradable(self, problem: Problem) -> str | None:
        """See Grader. It depends on the imports of the problem and its reference: an answer that imports a missing module
        is wrong."""
        texts = "\n".join((problem.code_context, problem.prompt, problem.reference_code))
        needed = self._missing & {*IMPORTED.findall(texts), *LIBRARIES.get(problem.library, Library((), ())).modules[:1]}
        if not needed:
            return None
        return f"it needs {', '.join(sorted(needed))}, which the environment for DS-1000 does not have"

    def facts(self) -> dict[str, Any]:
        """See Grader."""
        return {"ds1000": self._environment.facts(), "sandbox": self._sandbox.mode,
                "limits": {"seconds": SAMPLE_SECONDS, "memory_limit_mb": self._memory_limit_mb}}

    def stop(self) -> None:
        """See Grader."""
        self._sandbox.stop.set()
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _grade(self, problem: Problem, samples: list[str], seconds: float, alone: bool) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while len(verdicts) < len(samples) and not self._sandbox.stop.is_set():
            verdicts += self._attempt(problem, samples[len(verdicts):], seconds, alone)
        return verdicts + [NOT_GRADED] * (len(samples) - len(verdicts))

    def _attempt(self, problem: Problem, samples: list[str], seconds: float, alone: bool) -> list[Verdict]:
        """The verdicts of one process on the first samples, at least one; if they are not all, the process has ended."""
        verdicts: list[Verdict] = []
        process = self._take(problem.library)
        try:
            process.send({"code_context": problem.code_context, "samples": samples, "seconds": seconds})
            while len(verdicts) < len(samples):
                event = process.receive(WALL_FACTOR * seconds + SPARE_SECONDS)
                if event is None:
                    process.end()
                    return [*verdicts, ENDED]
                if "sample" in event:
                    verdicts.append(_verdict(event, alone))
        except BaseException:
            process.end()
            raise
        with self._lock:
            self._idle.append(process)
        return verdicts

    def _take(self, library: str) -> "Process":
        """Take an idle process for this library. If there is none, end those of other libraries, which hold memory, and
        start one."""
        with self._lock:
            mine = next((process for process in self._idle if process.library == library), None)
            if mine:
                self._idle.remove(mine)
                return mine
            others, self._idle = self._idle, []
        for process in others:
            process.end()
        process = Process(library, self._environment, self._sandbox, self._memory_limit_mb)
        self._missing = process.missing
        return process


class Process:
    """One process that runs ``grader_process.py``. Starting it imports the library, which takes seconds."""

    def __init__(self, library: str, environment: Environment, sandbox: Sandbox, memory_limit_mb: int) -> None:
        self.library, self._sandbox, self._stack = library, sandbox, ExitStack()
        settings = {
            "modules": LIBRARIES.get(library, Library((), ())).modules, "watched": WATCHED,
            "contained": sandbox.mode != "unsafe"}
        command = [str(environment.python), "-P", "-s", "-B", "-c", PROGRAM.read_text(encoding="utf-8"), json.dumps(settings)]
        self._process = self._stack.enter_context(sandbox.start(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, resources=Resources(
                memory_bytes=memory_limit_mb * 2**20, processes=PROCESSES, open_files=OPEN_FILES)))
        self._unread = b""
        ready = self.receive(START_SECONDS)
        self.missing = frozenset(ready["missing"] if ready else ())

    def send(self, request: dict[str, Any]) -> None:
        """Give it work. If the process has ended, ``receive`` shows it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Its next event; None if it has ended, is silent for ``seconds``, or ``stop`` is set."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or self._sandbox.stop.is_set():
                return None
            if select.select([self._process.stdout], [], [], min(left, 0.5))[0]:
                part = self._process.stdout.read1(65536)  # type: ignore[attr-defined]
                if not part:
                    return None
                self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:  # only if an uncontained sample tampered with the process
            return None
        return event

    def end(self) -> None:
        """End it and everything it started."""
        self._stack.close()


def _verdict(event: dict[str, Any], alone: bool) -> Verdict:
    if event["status"] == "waits":  # neither done nor out of processor time
        return Verdict("timeout", "timeout", event["detail"]) if alone else replace(NOT_GRADED, detail=event["detail"])
    status: Status = event["status"]
    return Verdict(status, status, event["detail"])
