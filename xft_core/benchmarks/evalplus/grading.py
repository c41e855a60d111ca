"""Verdicts on samples. Each problem has a judge (see contained/), in a sandbox that starts one judge after another; each
sample and suite has its own sandbox.

The judge and a sample's process communicate over their own channel, which is created here. Only the judge reads what a
sample sends.
"""

import compileall
import json
import os
import select
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import xft_core
from xft_core.benchmarks.benchmark import NOT_GRADED, Grader, Status, Verdict
from xft_core.benchmarks.evalplus import contained
from xft_core.benchmarks.evalplus.contained import channel
from xft_core.benchmarks.evalplus.contained.judge import CHANGED
from xft_core.benchmarks.evalplus.problems import RELEASES, Problem
from xft_core.errors import DataError, SandboxError
from xft_core.files.jsonl import unpacked_digest
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import REMEDY, PythonProgram, Resources, Sandbox, open_sandbox
from xft_core.sandbox.processor_time import RunningTime, is_overloaded, time_of

# A last resort. The slowest reference of HumanEval+ and MBPP+ takes 41 s on an idle machine. The judge gives up on a
# sample's suite of inputs after 62 s, or after four times the reference's time.
REFERENCE_SECONDS, SUITE_SECONDS, ANSWER_SECONDS = 900, 3600, 300
MESSAGE_SECONDS = 30  # from the first byte of a message to its last
OWN_PROCESSOR_SECONDS = 5  # for a sample's sandbox to start and to report return values
# A thread pool has up to 32 threads; the sandbox's own processes count too.
PROCESSES = 40
MESSAGE_BYTES, ANSWER_BYTES = 4096, 2**20
SECONDS_BETWEEN_LOOKS = 0.5

# The only parts of this package that a sandbox mounts; samples must not see the rest.
PACKAGE = Path(xft_core.__file__).parent
CONTAINED = Path(contained.__file__).parent
MOUNTS = [CONTAINED, *(path / "__init__.py" for path in CONTAINED.parents if path.is_relative_to(PACKAGE))]
PACKAGES = str(Path(sysconfig.get_path("purelib")).resolve())
START = (
    f"import sys; sys.path += [{PACKAGES!r}, {str(PACKAGE.parent)!r}]; "
    "from xft_core.benchmarks.evalplus.contained import {0}; sys.path.pop(); {0}.main()")

CANARY = Problem(
    task_id="canary", prompt="def add(a, b):\n", entry_point="add", canonical_solution="    return a + b\n",
    base_input=[[1, 2]], plus_input=[[-1, 5], [2.5, 0.25]])
CANARIES: dict[str, tuple[str, tuple[Status, ...]]] = {
    "a right": ("def add(a, b):\n    return b + a\n", ("pass",)),
    "a wrong": ("def add(a, b):\n    return a - b\n", ("fail",)),
    # On a very busy machine the alarm may be late; then the judge ends the program.
    "an endless": ("def add(a, b):\n    while True: pass\n", ("fail", "timeout"))}
CANARY_SECONDS = 1.0


class NoVerdict(Exception):
    """The judge, or the sandbox of a sample, has ended; nothing is known about the sample."""


@dataclass(frozen=True)
class Limits:
    """Limits of one sample: seconds for one input (the larger of ``min_time_limit`` and the reference's own time multiplied
    by ``time_limit_factor``) and memory in MB."""

    min_time_limit: float
    time_limit_factor: float
    memory_limit_mb: int


class EvalPlusGrader(Grader[Problem]):
    """Grades EvalPlus problems. Raises SandboxError if there is no sandbox, or if a canary gets a wrong verdict in it."""

    def __init__(self, config: EvaluateConfig, benchmark: Path) -> None:
        self._unpacked_digest = unpacked_digest(benchmark)
        self._limits = Limits(config.min_time_limit, config.time_limit_factor, config.memory_limit_mb)
        # A sandbox cannot write bytecode, so each of its processes would recompile these files, which doubles its start
        # time. If this user cannot write bytecode either, it stays that way.
        compileall.compile_dir(CONTAINED, quiet=2)
        self._judges = Judges(open_sandbox(config.sandbox, MOUNTS, hidden=[benchmark]), self._limits)
        try:
            self.check()
        except BaseException:
            self.stop()
            raise

    def grade(self, problem: Problem, samples: list[str], alone: bool = False) -> list[Verdict]:
        """See Grader. Raises DataError if the problem's own canonical solution fails."""
        return grade(problem, samples, self._judges, alone)

    def check(self) -> None:
        """See Grader."""
        check_canaries(self._judges)

    def facts(self) -> dict[str, Any]:
        """See Grader. ``release``: the evalplus release that the benchmark's content exactly matches; None for any other."""
        return {"release": RELEASES.get(self._unpacked_digest), "unpacked_sha256": self._unpacked_digest,
                "evalplus_version": version("evalplus"), "sandbox": self._judges.sandbox.mode, "limits": asdict(self._limits)}

    def stop(self) -> None:
        """See Grader."""
        self._judges.stop()


def grade(problem: Problem, samples: list[str], judges: "Judges", alone: bool = False) -> list[Verdict]:
    """Grade complete programs that answer ``problem``, and return their verdicts in order.

    Raises DataError if the problem's own canonical solution fails, and SandboxError if its judge does not even finish
    running that solution while it is ``alone`` on this machine.
    """
    verdicts: list[Verdict] = []
    judge: Judge | None = None
    try:
        for sample in samples:
            if judge is None:
                try:
                    judge = Judge(problem, judges)
                except NoVerdict as reason:  # not the fault of a sample
                    if alone and not judges.sandbox.stop.is_set():
                        raise SandboxError(
                            f"Benchmark problem {problem.task_id!r} cannot be graded here: with nothing else being graded, "
                            f"{reason} while it ran the canonical_solution. Is this machine out of memory, or is "
                            f"evaluate.memory_limit_mb ({judges.limits.memory_limit_mb}) too low?") from None
                    left = len(samples) - len(verdicts)
                    return verdicts + [replace(NOT_GRADED, detail=str(reason))] * left
            try:
                verdicts.append(judge.verdict(sample, alone))
            except NoVerdict as reason:
                verdicts.append(replace(NOT_GRADED, detail=str(reason)))
                judge.abandon()
                judge = None
    except BaseException:
        if judge:
            judge.abandon()
        raise
    if judge:
        judge.close()
    return verdicts


def check_canaries(judges: "Judges") -> None:
    """Grade a right, a wrong and an endless program, so that a machine that cannot grade is not mistaken for a bad model.
    Raises SandboxError if one gets the wrong verdict."""
    try:
        verdicts = grade(
            CANARY, [program for program, _ in CANARIES.values()], judges.with_time_limit(CANARY_SECONDS), alone=True)
    except SandboxError as error:
        raise SandboxError(f"Grading does not work on this machine. {error} {REMEDY}") from None
    for (name, (_, allowed)), verdict in zip(CANARIES.items(), verdicts, strict=True):
        if not {verdict.base, verdict.plus} <= {*allowed}:
            raise SandboxError(
                f"Grading does not work on this machine: {name} program got {verdict.plus!r} (sandbox {judges.sandbox.mode}, "
                f"memory limit {judges.limits.memory_limit_mb} MB). The reason given: {verdict.detail or 'none'}. Is evalplus "
                f"installed, and are the limits high enough? {REMEDY}")


@contextmanager
def started(
    sandbox: Sandbox, memory_bytes: int, program: str, job: dict[str, Any], stderr: IO[bytes] | None,
) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Start a judge or candidate with ``job`` as its input. Yields the channel to it, and the process it runs below."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        with sandbox.start(
            PythonProgram(START.format(program), (str(theirs.fileno()),)), stdin=stdin, stderr=stderr,
            descriptors=[theirs.fileno()],
            resources=Resources(memory_bytes=memory_bytes, resident_bytes=memory_bytes, processes=PROCESSES),
        ) as process:
            theirs.close()  # so that the end of the process ends the channel
            yield ours, process


class Host:
    """A sandbox that runs one judge after another: a process that has loaded the judges' imports, and forks."""

    def __init__(self, sandbox: Sandbox, memory_bytes: int) -> None:
        with ExitStack() as opened:
            self._complaints = opened.enter_context(tempfile.TemporaryFile())
            self._channels, self._process = opened.enter_context(
                started(sandbox, memory_bytes, "judge", {}, self._complaints))
            self._stack = opened.pop_all()

    def begin(self, control: socket.socket) -> None:
        """Start a judge, with ``control`` as the channel to it. Raises NoVerdict."""
        # The judges share this file's position. None of them writes now, and none may reach the limit on file size.
        self._complaints.seek(0)
        self._complaints.truncate()
        try:
            socket.send_fds(self._channels, [b"-"], [control.fileno()])
        except OSError:
            raise NoVerdict(self.reason()) from None

    def is_alive(self) -> bool:
        """Whether another judge may be started."""
        return self._process.poll() is None

    def reason(self) -> str:
        """Why a judge has ended, as far as it reported."""
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - MESSAGE_BYTES))
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f"the judge ended without a verdict ({lines[-1] if lines else 'it left no message'})"

    def close(self) -> None:
        """End the sandbox and everything in it."""
        self._stack.close()


class Judges:
    """A pool of hosts that judge under ``limits`` in ``sandbox``. Hosts that wait for their next problem are kept."""

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self.sandbox, self.limits = sandbox, limits
        self._waiting: list[Host] = []

    def with_time_limit(self, seconds: float) -> "Judges":
        """The same hosts, with another ``min_time_limit``."""
        other = Judges(self.sandbox, replace(self.limits, min_time_limit=seconds))
        other._waiting = self._waiting
        return other

    @property
    def memory_bytes(self) -> int:
        """The memory that a judge, or a sample, may use."""
        return self.limits.memory_limit_mb * 2**20

    def take(self) -> Host:
        """Take a host for one judge at a time. Its processes die with the thread that started it, if that ends first."""
        while self._waiting:
            host = self._waiting.pop()
            if host.is_alive():
                return host
            host.close()
        return Host(self.sandbox, self.memory_bytes)

    def give_back(self, host: Host) -> None:
        """Keep a host after its judge has finished."""
        self._waiting.append(host)
        if self.sandbox.stop.is_set():
            self.stop()

    def stop(self) -> None:
        """End the waiting hosts; those at work end with their judges."""
        self.sandbox.stop.set()
        while self._waiting:
            self._waiting.pop().close()


class Judge:
    """The judge of one problem. Raises NoVerdict, and DataError if the problem's own canonical solution fails."""

    def __init__(self, problem: Problem, judges: Judges) -> None:
        self._problem, self._judges, limits = problem, judges, judges.limits
        self._host = judges.take()
        self._control, theirs = socket.socketpair()
        try:
            with theirs:
                self._host.begin(theirs)
            self._send({"problem": asdict(problem), "min_time_limit": limits.min_time_limit,
                        "time_limit_factor": limits.time_limit_factor})
            reference = self._answer(REFERENCE_SECONDS)
        except BaseException:
            self.abandon()
            raise
        if reference["reference"] is not None:
            self.close()
            raise DataError(
                f"Benchmark problem {problem.task_id!r}: its own canonical_solution fails on its inputs "
                f"({reference['reference']}). Fix or remove the problem.")
        self._seconds: dict[str, float] = reference["seconds"]

    def verdict(self, sample: str, alone: bool = False) -> Verdict:
        """The verdict on one program. Only a program that passes the base inputs gets the plus inputs."""
        base, detail = self._examine("base", sample, alone)
        if base != "pass" or not self._problem.plus_input:
            return Verdict(base, base, detail)
        plus, detail = self._examine("plus", sample, alone)
        return Verdict(base, plus, detail)

    def close(self) -> None:
        """Let the judge, which waits for the next sample, exit."""
        self._control.close()
        self._judges.give_back(self._host)

    def abandon(self) -> None:
        """End the judge, whatever it is doing."""
        self._control.close()
        self._host.close()

    def _examine(self, suite: str, sample: str, alone: bool, by_value: bool = False) -> tuple[Status, str]:
        job = {"program": sample, "entry_point": self._problem.entry_point, "memory_bytes": self._judges.memory_bytes}
        began = time.monotonic()
        with started(self._judges.sandbox, self._judges.memory_bytes, "candidate", job, None) as (candidate, process):
            pid = process.pid
            self._send({"suite": suite, "by_value": by_value})
            socket.send_fds(self._control, [b"-"], [candidate.fileno()])
            candidate.close()
            # The time of all its processes together. The judge sees none of them, and watches the time of the first one.
            seconds, running = self._seconds[suite], RunningTime(pid)
            answer = self._receive(SUITE_SECONDS, lambda: running.seconds() <= seconds + OWN_PROCESSOR_SECONDS)
            spent = time_of(pid)
        if answer is None:
            self._answer(ANSWER_SECONDS)  # the judge's verdict on its end
            answer = {"status": "timeout", "late": True,
                      "detail": f"its processes took more than the {seconds:.3g} s of processor time that all inputs have"}
        if answer["status"] == CHANGED:
            return self._examine(suite, sample, alone, by_value=True)
        if answer["late"] and not alone and is_overloaded(spent, time.monotonic() - began):
            return "infrastructure_error", f"its time was over while this machine was overloaded ({suite}: {answer['detail']})"
        if answer["status"] is None:
            raise NoVerdict(answer["detail"])
        return answer["status"], f"{suite}: {answer['detail']}" if answer["detail"] else ""

    def _send(self, content: dict[str, Any]) -> None:
        try:
            channel.send(self._control, json.dumps(content).encode(), REFERENCE_SECONDS)
        except (channel.ChannelClosed, channel.ChannelTimeout):
            raise NoVerdict(self._host.reason()) from None

    def _answer(self, seconds: float) -> dict[str, Any]:
        answer = self._receive(seconds, lambda: True)
        assert answer is not None
        return answer

    def _receive(self, seconds: float, may_go_on: Callable[[], bool]) -> dict[str, Any] | None:
        """The judge's next message; None as soon as ``may_go_on`` is false."""
        deadline = time.monotonic() + seconds
        while not self._judges.sandbox.stop.is_set() and time.monotonic() < deadline:
            if select.select([self._control], [], [], SECONDS_BETWEEN_LOOKS)[0]:
                try:
                    answer: dict[str, Any] = json.loads(
                        channel.receive(self._control, ANSWER_BYTES, MESSAGE_SECONDS))
                    return answer
                except (channel.ChannelClosed, channel.ChannelTimeout):
                    break
            if not may_go_on():
                return None
        raise NoVerdict(self._host.reason())
