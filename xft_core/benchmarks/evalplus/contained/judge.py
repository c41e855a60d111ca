"""Judge the samples of one problem: run the reference, ask each sample's process for its outputs, and compare them.

The judge never runs a sample. Each problem is judged in a fork of the first process, so that imports happen once and no
problem sees what another's reference left. For each fork, the first process gets a byte with the descriptor of a channel,
over the channel whose descriptor is its argument. The channel of a fork carries JSON:

    to here     {"problem": fields of Problem, "min_time_limit": seconds, "time_limit_factor": float}
    from here   {"reference": null, "seconds": {"base": 62.0, "plus": 62.0}}: a sample's time for all inputs; or
                {"reference": "ZeroDivisionError: …"}, after which nothing follows
    to here     {"suite": "base", "by_value": false}, and one byte that carries the descriptor of a channel to a sample's
                process. By value: every output is requested, whatever its digest
    from here   {"status": "pass", "detail": "", "late": false}: pass, fail or timeout; null if its sandbox did not start,
                "changed" for a right value that does not match the digest sent first; late if its time ran out

Statuses are evalplus's: ``timeout`` for a program that gave no answer (also because its process ended), ``fail`` for
anything else that is not right, including an input that took too long.

Each suite of a sample is judged in a fork of this process, and only that fork reads what the sample sends. Before it reads,
compares or describes a value, it writes the verdict that holds if it does not survive this.
"""

import contextlib
import gc
import json
import marshal
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from xft_core.benchmarks.evalplus.contained import channel, values
from xft_core.benchmarks.evalplus.contained.comparison import FLOAT_ATOL, has_many_answers, is_right
from xft_core.benchmarks.evalplus.contained.reference import ReferenceFailed, Suite
from xft_core.benchmarks.evalplus.contained.stopwatch import Stopwatch

# evalplus gives all inputs of a suite together at most this long, and then two seconds to return. The limit here is higher
# if the reference itself takes long (Mbpp/599: 23 s and more), so that no machine is too slow or too busy for it.
SUITE_SECONDS, RETURN_SECONDS = 60, 2
START_SECONDS = 60  # for a sandbox to start on a busy machine
ANSWER_SECONDS = 10  # beyond an input's limit, for large outputs
CLOCK_FACTOR = 5  # limits are for the time in which a sample could work (stopwatch.py), and this many times longer by the clock
COMPARE_SECONDS, ALL_COMPARE_SECONDS = 30, 120  # of processor time, for one output and for all of a suite
SPARE_BYTES = 64 * 2**20
MAX_JOB_BYTES, MAX_ANSWER_BYTES = 2**31, 4096
CHANGED = "changed"


class Ended(Exception):
    """A suite is decided: a status, a detail for readers, and whether time decided it."""

    def __init__(self, status: str | None, detail: str, late: bool = False) -> None:
        super().__init__(status, detail, late)
        self.status, self.detail, self.late = status, detail, late


def main() -> None:
    """Fork a judge for each channel that arrives, until grading.py hangs up."""
    channels = socket.socket(fileno=int(sys.argv[1]))
    gc.freeze()  # what forks share stays shared
    while True:
        _, descriptors, _, _ = socket.recv_fds(channels, 1, 1)
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as control:
            if os.fork() == 0:
                channels.close()
                _judge_and_exit(control)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _judge_and_exit(control: socket.socket) -> NoReturn:
    try:
        judge_problem(control)
        status = 0
    except BaseException:
        traceback.print_exc()  # grading.py keeps the end of it
        status = 1
    os._exit(status)


def judge_problem(control: socket.socket) -> None:
    """Judge samples of one problem until grading.py hangs up."""
    job = json.loads(channel.receive(control, MAX_JOB_BYTES))
    problem = job["problem"]
    try:
        suites = {name: Suite(problem, problem[f"{name}_input"]) for name in ("base", "plus")}
    except ReferenceFailed as error:
        report(control, {"reference": str(error)})
        return
    limits = {name: Limits(suite, job["min_time_limit"], job["time_limit_factor"]) for name, suite in suites.items()}
    report(control, {"reference": None, "seconds": {name: of_suite.all_inputs for name, of_suite in limits.items()}})
    gc.freeze()
    while True:
        try:
            asked = json.loads(channel.receive(control, MAX_JOB_BYTES))
        except channel.ChannelClosed:
            return
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        with socket.socket(fileno=descriptors[0]) as candidate:
            name, by_value = asked["suite"], asked["by_value"]
            judged = in_fork(lambda write: Examination(
                suites[name], candidate, limits[name], write, by_value).run())  # noqa: B023
        report(control, judged)


def report(control: socket.socket, content: dict[str, Any]) -> None:
    """One JSON message."""
    channel.send(control, json.dumps(content).encode())


def in_fork(judge: Callable[[Callable[[Ended], None]], None]) -> dict[str, Any]:
    """Run ``judge`` in a fork, and return the last verdict that it wrote, however the fork ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            bound_memory()
            with os.fdopen(writing, "w", buffering=1, encoding="utf-8") as verdicts:
                judge(lambda ended: print(
                    json.dumps({"status": ended.status, "detail": ended.detail, "late": ended.late}), file=verdicts))
        except BaseException:
            traceback.print_exc()  # grading.py keeps the end of it
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as verdicts:
        written = verdicts.read().split("\n")
    os.waitpid(child, 0)
    if len(written) < 2:
        return {"status": None, "detail": "the process that judged it ended without a verdict", "late": False}
    judged: dict[str, Any] = json.loads(written[-2])
    return judged


def bound_memory() -> None:
    """Keep this fork and its parent together within the sandbox's memory: above it, both would be killed."""
    allowed, hard = resource.getrlimit(resource.RLIMIT_AS)
    if allowed == resource.RLIM_INFINITY:
        return
    with open("/proc/self/statm", encoding="ascii") as stream:
        size, resident = (int(pages) * resource.getpagesize() for pages in stream.read().split()[:2])
    bound = max(size + SPARE_BYTES, allowed - resident - SPARE_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (min(bound, allowed), hard))


class Limits:
    """Seconds that samples have for a suite: for each input, for reading each output, and for all inputs."""

    def __init__(self, suite: Suite, min_time_limit: float, time_limit_factor: float) -> None:
        self.inputs = [max(min_time_limit, time_limit_factor * expected.seconds) for expected in suite.expected]
        # Reporting a return value takes time as well, and a lot for an output of a gigabyte.
        self.reading = [time_limit_factor * expected.digest_seconds for expected in suite.expected]
        reference_seconds = time_limit_factor * sum(expected.seconds for expected in suite.expected)
        self.all_inputs = (
            max(min(SUITE_SECONDS, sum(self.inputs)), reference_seconds) + sum(self.reading) + RETURN_SECONDS)


class Examination:
    """One sample on one suite of inputs, up to the first that is not right. ``write`` takes verdicts; the last one holds.

    A request for a value tells the sample that its digest was wrong, so it could then send another value: of True and
    False, one is right. So a right value must match the digest sent before. Otherwise the verdict is CHANGED, and a new
    process is judged by value. (The digest from an honest process may differ from that of its value here: see values._exact.)
    """

    def __init__(
        self, suite: Suite, candidate: socket.socket, limits: Limits, write: Callable[[Ended], None], by_value: bool = False,
    ) -> None:
        self._suite, self._candidate, self._limits, self._write = suite, candidate, limits, write
        self._one_answer = not has_many_answers(suite.dataset, suite.entry_point)
        self._by_value = by_value or not self._one_answer
        self._schedstat: int | None = None
        # The time that the sample's process has left for all inputs; the judge's own work does not count.
        self._left = limits.all_inputs
        self._compare_left: float = ALL_COMPARE_SECONDS

    def run(self) -> None:
        """Write the verdict."""
        try:
            self._define()
            atol = self._suite.atol
            for index, expected in enumerate(self._suite.expected):
                self._examine(index, atol)
                if atol == 0 and expected.floats:
                    atol = FLOAT_ATOL  # from here on, as in evalplus
        except Ended as ended:
            self._write(ended)
        else:
            self._write(Ended("pass", ""))

    def _define(self) -> None:
        try:
            # Received before the sample begins, so the sample cannot have sent it.
            self._candidate.settimeout(START_SECONDS)
            _, descriptors, _, _ = socket.recv_fds(self._candidate, 1, 1)
            self._schedstat = descriptors[0] if descriptors else None
            ready = channel.receive(self._candidate, MAX_ANSWER_BYTES, START_SECONDS)
        except (OSError, channel.ChannelClosed, channel.ChannelTimeout):
            raise Ended(None, "its sandbox did not come up") from None
        if json.loads(ready) != {"ready": True}:
            raise Ended(None, "its sandbox did not come up")
        defined = self._answer("while it was defined", SUITE_SECONDS)
        if "raised" in defined:
            raise Ended("fail", f"while it was defined: raised {defined['raised']}")

    def _examine(self, index: int, atol: float) -> None:
        arguments, expected = self._suite.inputs[index], self._suite.expected[index]
        limit, reading = self._limits.inputs[index], self._limits.reading[index]
        call = f"{self._suite.entry_point}({', '.join(map(values.shown, arguments))})"
        self._send(("call", arguments, limit, reading))
        answer = self._answer(call, limit + reading + ANSWER_SECONDS)
        if answer.get("late"):
            raise Ended("fail", f"{call}: timed out after {limit:.3g} s", late=True)
        if "raised" in answer:
            raise Ended("fail", f"{call}: raised {answer['raised']}; expected {self._expected(index)}")
        digest = None if self._by_value else answer.get("digest")
        if digest is not None and digest == expected.digest:
            return
        self._send(("value",))
        encoded = self._receive(call, ANSWER_SECONDS, values.MAX_BYTES)
        if encoded == values.TOO_LARGE:
            raise Ended("fail", f"{call}: returned more than {values.MAX_BYTES // 2**20} MB that is not exactly "
                        f"{self._expected(index)}")
        self._compare(call, arguments, digest, encoded, self._suite.output(index), atol)

    def _compare(
        self, call: str, arguments: list[Any], digest: Any, encoded: bytes, right: Any, atol: float,
    ) -> None:
        expected = self._described(right)
        seconds = min(COMPARE_SECONDS, self._compare_left)
        self._write(Ended("fail", f"{call}: returned what could not be compared within {seconds:.0f} s and the memory "
                          f"there is; expected {expected}"))
        reason = ""
        with deadline(seconds) as left:
            try:
                output = values.decode(encoded)
                if is_right(self._suite.dataset, self._suite.entry_point, arguments, output, right, atol):
                    if digest is not None and digest != values.digest(output)[0]:
                        raise Ended(CHANGED, f"{call}: returned another value than it said first")
                    self._compare_left -= seconds - left()
                    return
            except Ended:
                raise
            except values.Malformed:
                raise Ended("fail", f"{call}: returned what cannot be read; expected {expected}") from None
            except Exception as error:  # not right, as in evalplus
                reason = f" (comparing: {type(error).__name__})"
            raise Ended("fail", f"{call}: returned {values.shown(output)}; expected {expected}{reason}")

    def _expected(self, index: int) -> str:
        return self._described(self._suite.output(index))

    def _described(self, right: Any) -> str:
        return values.shown(right) if self._one_answer else "a root"

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            channel.send(self._candidate, marshal.dumps(message, 2), ANSWER_SECONDS)
        except (channel.ChannelClosed, channel.ChannelTimeout):
            pass  # waiting for the answer tells why

    def _answer(self, during: str, seconds: float) -> dict[str, Any]:
        try:
            answer = json.loads(self._receive(during, seconds, MAX_ANSWER_BYTES))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Ended("fail", f"{during}: answered what cannot be read")
        return answer

    def _receive(self, during: str, seconds: float, max_bytes: int) -> bytes:
        allowed = min(seconds, self._left)
        stopwatch = Stopwatch(self._schedstat)

        def left() -> float:
            return max(0.0, min(allowed - stopwatch.seconds(), CLOCK_FACTOR * allowed - stopwatch.clock_seconds()))

        try:
            return channel.receive(self._candidate, max_bytes, left)
        except channel.ChannelClosed:
            raise Ended("timeout", f"{during}: its process ended") from None
        except channel.ChannelTimeout:
            late = f"{seconds:.3g} s" if seconds < self._left else f"the {self._limits.all_inputs:.3g} s that all inputs have"
            raise Ended("timeout", f"{during}: no answer within {late}", late=True) from None
        except channel.MessageTooLarge:
            raise Ended("fail", f"{during}: its answer is too large") from None
        finally:
            self._left -= stopwatch.seconds()


class deadline:
    """Ends this process, whatever it is doing, if the body takes more processor time than ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Callable[[], float]:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, max(self._seconds, 1e-3))
        return lambda: signal.getitimer(signal.ITIMER_PROF)[0]

    def __exit__(self, *_: Any) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
