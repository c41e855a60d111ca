"""Work in several processes whose results come back in the order of its items.

Each is a fresh interpreter, not a fork: a fork of a process with threads (of tokenizers, of arrow) may inherit a lock that
nobody will release. Its standard input gives it what to do and its standard output takes the answers, a line of JSON each;
what is large goes through files. A process that ends closes its output, which is noticed at once.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from xft_core.errors import StageInterrupted, StageKilled
from xft_core.runtime.process import OUTPUT, die_with_parent

Item = TypeVar("Item")
AHEAD = 4  # items for each process that may be under way or wait for an earlier one's answer


def cores() -> int:
    """Processor cores this process is meant to use: OMP_NUM_THREADS, by which a flow shares a machine, or all it may."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP allows one for each level: 4,2
    is_number = threads.isascii() and threads.isdecimal() and len(threads) < 5
    return max(1, int(threads)) if is_number else len(os.sched_getaffinity(0))


def in_order(
    module: str, settings: list[dict[str, Any]], items: Iterable[Item], told: Callable[[Item], Any],
) -> Generator[tuple[Item, Any], None, None]:
    """Every item with the answer to ``told(item)`` (JSON), in the order of the items.

    ``module``: a program that calls ``answer``. It is started once for each of ``settings``. All end with this process, and
    when the iterator is closed. What ``items`` raises is raised once the answers before it were given. Raises
    StageInterrupted when a process ends before its work does, OSError and MemoryError that the work raises.
    """
    workers: list[_Worker] = []
    try:
        for one in settings:
            workers.append(_Worker(module))
            workers[-1].settings = one
        yield from _answers(iter(items), told, workers)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, module: str) -> None:
        self.settings: dict[str, Any] | None = None
        # Ctrl-C goes to all processes of a terminal; it is this one's to answer.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"})
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.stdin and self._process.stdout
        self._questions, self.answers = self._process.stdin, self._process.stdout

    def ask(self, question: Any) -> None:
        """Hand out work. The process must not have any."""
        lines = [question] if self.settings is None else [self.settings, question]
        self.settings = None
        try:
            for line in lines:
                self._questions.write(json.dumps(line, default=_of_another_kind).encode() + b"\n")
            self._questions.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> Any:
        """Wait for the answer."""
        line = self.answers.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        said = json.loads(line)
        if "os_error" in said:
            raise OSError(*said["os_error"])
        if "no_memory" in said:
            raise MemoryError
        return said["answer"]

    def _ended(self) -> StageInterrupted:
        self._process.kill()  # where it closed its output only
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return StageKilled("One of the processes that share the work was killed, mostly for want of memory.")
        return StageInterrupted(f"One of the processes that share the work ended early (exit status {status}).")

    def end(self) -> None:
        """Kill the process, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for stream in (self._questions, self.answers):
            with suppress(BrokenPipeError):  # what was not written yet
                stream.close()


def _answers(items: Iterator[Any], told: Callable[[Any], Any], workers: list[_Worker]) -> Iterator[tuple[Any, Any]]:
    idle, busy = list(workers), 0
    asked: dict[int, Any] = {}  # items that were handed out
    answers: dict[int, Any] = {}
    given = handed_out = 0
    end: Exception | None = None  # StopIteration: there are no more items
    with selectors.DefaultSelector() as selector:
        while True:
            while end is None and idle and handed_out - given < AHEAD * len(workers):
                try:
                    asked[handed_out] = next(items)
                except Exception as error:
                    end = error
                    break
                worker = idle.pop()
                worker.ask(told(asked[handed_out]))
                selector.register(worker.answers, selectors.EVENT_READ, (worker, handed_out))
                handed_out, busy = handed_out + 1, busy + 1
            while given in answers:
                yield asked.pop(given), answers.pop(given)
                given += 1
            if given == handed_out and end is not None:
                if isinstance(end, StopIteration):
                    return
                raise end
            if busy and (not idle or end is not None or handed_out - given >= AHEAD * len(workers)):
                for key, _ in selector.select():
                    worker, place = key.data
                    selector.unregister(worker.answers)
                    answers[place] = worker.answer()
                    idle.append(worker)
                    busy -= 1


def _of_another_kind(value: object) -> dict[str, str]:
    """What stands for a value that JSON has not (a date, bytes of a table): none that is of any use as a text or a list."""
    return {"kind": type(value).__name__}


def answer(start: Callable[[dict[str, Any]], Callable[[Any], Any]]) -> None:
    """Be one of the processes that ``in_order`` starts. ``start``: from its settings to what answers questions.

    Never returns while there is something to do. Only answers go to standard output: whatever else is printed goes to
    standard error.
    """
    die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(OUTPUT), "wb")
    os.dup2(sys.stderr.fileno(), OUTPUT)
    questions = sys.stdin.buffer
    if not (settings := questions.readline()):
        return
    work = start(json.loads(settings))
    while question := questions.readline():
        try:
            said = {"answer": work(json.loads(question))}
        except OSError as error:
            said = {"os_error": [error.errno, error.strerror, error.filename and str(error.filename)]}
        except MemoryError:
            said = {"no_memory": True}
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()
