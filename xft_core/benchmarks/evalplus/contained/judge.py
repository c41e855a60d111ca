"""Judges the samples of one problem: runs the reference, asks each sample's process for its outputs, compares.

It never runs a sample. The channel to grading.py (its descriptor is the argument) carries JSON:

    to here     {"problem": fields of Problem, "min_time_limit": seconds, "time_limit_factor": float}
    from here   {"reference": null}, or {"reference": "ZeroDivisionError: …"} and then nothing follows
    to here     {"suite": "base"}, and one byte that carries the descriptor of a channel to a sample's process
    from here   {"status": "pass", "detail": ""}: pass, fail or timeout; null when its sandbox did not come up

Statuses are evalplus's: ``timeout`` for a program that did not come back with an answer (that its process ended counts
as such), ``fail`` for anything else that is not right, an input that took too long included.
"""

import json
import marshal
import signal
import socket
import sys
import time
from typing import Any

from xft_core.benchmarks.evalplus.contained import channel, values
from xft_core.benchmarks.evalplus.contained.comparison import FLOAT_ATOL, has_many_answers, is_right
from xft_core.benchmarks.evalplus.contained.reference import ReferenceFailed, Suite

# evalplus gives all inputs of a suite together at most so long, and then two seconds to come back. Here it is more where
# the reference itself takes long (Mbpp/599: 23 s and more), so that no machine is too slow or too busy for it.
SUITE_SECONDS, RETURN_SECONDS = 60, 2
START_SECONDS = 60  # for a sandbox to come up on a machine that is busy
ANSWER_SECONDS = 10  # beyond an input's limit, for large outputs
COMPARE_SECONDS = 30
TOO_LARGE = b'{"too_large": true}'
MAX_JOB_BYTES, MAX_ANSWER_BYTES = 2**31, 4096


class Ended(Exception):
    """A suite is decided: a status and what to tell people."""

    def __init__(self, status: str | None, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


def main() -> None:
    """Judge until grading.py hangs up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    job = json.loads(channel.receive(control, MAX_JOB_BYTES))
    problem = job["problem"]
    try:
        suites = {name: Suite(problem, problem[f"{name}_input"]) for name in ("base", "plus")}
    except ReferenceFailed as error:
        report(control, {"reference": str(error)})
        return
    report(control, {"reference": None})
    while True:
        try:
            name = json.loads(channel.receive(control, MAX_JOB_BYTES))["suite"]
        except channel.ChannelClosed:
            return
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        with socket.socket(fileno=descriptors[0]) as candidate:
            judged = Examination(suites[name], candidate, job["min_time_limit"], job["time_limit_factor"]).run()
        report(control, {"status": judged.status, "detail": judged.detail})


def report(control: socket.socket, content: dict[str, Any]) -> None:
    """One JSON message."""
    channel.send(control, json.dumps(content).encode())


class Examination:
    """One sample on one suite of inputs, up to the first that is not right."""

    def __init__(
        self, suite: Suite, candidate: socket.socket, min_time_limit: float, time_limit_factor: float,
    ) -> None:
        self._suite, self._candidate = suite, candidate
        self._limits = [max(min_time_limit, time_limit_factor * expected.seconds) for expected in suite.expected]
        self._one_answer = not has_many_answers(suite.dataset, suite.entry_point)
        # Saying what was returned takes time as well, and much for an output of a gigabyte.
        self._answer_seconds = [time_limit_factor * expected.digest_seconds for expected in suite.expected]
        reference_seconds = time_limit_factor * sum(expected.seconds for expected in suite.expected)
        # What is left of the time the sample's process has for all inputs; the judge's own work does not count.
        self._seconds = self._left = (
            max(min(SUITE_SECONDS, sum(self._limits)), reference_seconds) + sum(self._answer_seconds) + RETURN_SECONDS)

    def run(self) -> Ended:
        """The verdict."""
        try:
            self._define()
            atol = self._suite.atol
            for index, expected in enumerate(self._suite.expected):
                self._examine(index, atol)
                if atol == 0 and expected.floats:
                    atol = FLOAT_ATOL  # from here on, as in evalplus
        except Ended as ended:
            return ended
        return Ended("pass", "")

    def _define(self) -> None:
        try:
            ready = channel.receive(self._candidate, MAX_ANSWER_BYTES, START_SECONDS)
        except (channel.ChannelClosed, channel.ChannelTimeout):
            raise Ended(None, "its sandbox did not come up") from None
        if json.loads(ready) != {"ready": True}:
            raise Ended(None, "its sandbox did not come up")
        defined = self._answer("while it was defined", SUITE_SECONDS)
        if "raised" in defined:
            raise Ended("fail", f"while it was defined: raised {printable(defined['raised'])}")

    def _examine(self, index: int, atol: float) -> None:
        arguments, limit, expected = self._suite.inputs[index], self._limits[index], self._suite.expected[index]
        call = f"{self._suite.entry_point}({', '.join(map(values.shown, arguments))})"
        self._send(("call", arguments, limit))
        answer = self._answer(call, limit + self._answer_seconds[index] + ANSWER_SECONDS)
        if answer.get("late"):
            raise Ended("fail", f"{call}: timed out after {limit:.3g} s")
        if "raised" in answer:
            raise Ended("fail", f"{call}: raised {printable(answer['raised'])}; expected {self._expected(index)}")
        if self._one_answer and expected.digest is not None and answer.get("digest") == expected.digest:
            return
        self._send(("value",))
        encoded = self._receive(call, ANSWER_SECONDS, values.MAX_BYTES)
        if encoded == TOO_LARGE:
            raise Ended("fail", f"{call}: returned more than {values.MAX_BYTES // 2**20} MB that is not exactly "
                        f"{self._expected(index)}")
        reason = ""
        with alarm(COMPARE_SECONDS):
            try:
                output = values.decode(encoded)
                if is_right(
                    self._suite.dataset, self._suite.entry_point, arguments, output, self._suite.output(index), atol,
                ):
                    return
            except values.Malformed:
                raise Ended("fail", f"{call}: returned what cannot be read") from None
            except (Exception, MemoryError) as error:  # evalplus takes it for a no
                reason = f" (comparing: {type(error).__name__})"
        raise Ended("fail", f"{call}: returned {values.shown(output)}; expected {self._expected(index)}{reason}")

    def _expected(self, index: int) -> str:
        if not self._one_answer:
            return "a root"
        return values.shown(self._suite.output(index))

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            channel.send(self._candidate, marshal.dumps(message, 2), ANSWER_SECONDS)
        except (channel.ChannelClosed, channel.ChannelTimeout):
            pass  # waiting for the answer tells why

    def _answer(self, during: str, seconds: float) -> dict[str, Any]:
        started = time.monotonic()
        try:
            answer = json.loads(self._receive(during, min(seconds, self._left), MAX_ANSWER_BYTES))
        except (ValueError, RecursionError):
            answer = None
        self._left -= time.monotonic() - started
        if not isinstance(answer, dict):
            raise Ended("fail", f"{during}: answered what cannot be read")
        return answer

    def _receive(self, during: str, seconds: float, max_bytes: int) -> bytes:
        try:
            return channel.receive(self._candidate, max_bytes, max(0.0, seconds))
        except channel.ChannelClosed:
            raise Ended("timeout", f"{during}: its process ended") from None
        except channel.ChannelTimeout:
            late = f"{seconds:.3g} s" if seconds < self._left else f"the {self._seconds:.3g} s that all inputs have"
            raise Ended("timeout", f"{during}: no answer within {late}") from None
        except channel.MessageTooLarge:
            raise Ended("fail", f"{during}: its answer is too large") from None


def printable(text: Any) -> str:
    """What a sample's process wrote, fit for a file in UTF-8."""
    return str(text)[:MAX_ANSWER_BYTES].encode(errors="backslashreplace").decode()


class alarm:
    """Interrupts its body after ``seconds`` with an exception."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(*_: Any) -> None:
    raise TimeoutError
