"""Work in several processes whose results come back in the order of its items."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from xft_core.errors import StageInterrupted, StageKilled
from xft_core.runtime.process import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # items for each process that may be under way or wait for an earlier one's result


def cores() -> int:
    """Processor cores this process is meant to use: OMP_NUM_THREADS, by which a flow shares a machine, or all it may."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP allows one for each level: 4,2
    is_number = threads.isascii() and threads.isdecimal() and len(threads) < 5
    return max(1, int(threads)) if is_number else len(os.sched_getaffinity(0))


def in_order(
    make: Callable[[int], Callable[[Item], Result]], items: Iterable[Item], processes: int,
) -> Generator[tuple[Item, Result], None, None]:
    """Every item with its result, in the order of the items. ``make``: from a process's number to what does its work.

    With one process the work is done in this one. More are forked from it, so ``make`` may refer to anything; items and
    results are pickled. They end with this process, and when the iterator is closed. What ``items`` or the work raises is
    raised once the results before it have been given. Raises StageInterrupted when a process ends before its work does.
    """
    if processes == 1:
        work = make(0)
        for item in items:
            yield item, work(item)
        return
    context = multiprocessing.get_context("fork")
    workers, idle = {}, []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(make, number, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            idle.append(ours)
        yield from _results(iter(items), workers, idle)
    finally:
        for process in workers.values():
            process.kill()
        for connection, process in workers.items():
            process.join()
            connection.close()


def _results(items: Iterator[Any], workers: dict[Connection, Any], idle: list[Connection]) -> Iterator[tuple[Any, Any]]:
    waiting: dict[int, Any] = {}  # items that were handed out
    results: dict[int, tuple[bool, Any]] = {}
    busy: dict[Connection, int] = {}
    given = handed_out = 0
    failure: Exception | None = None  # StopIteration: there are no more items
    following: list[Any] = []
    while True:
        while failure is None and handed_out - given < AHEAD * len(workers):
            if not following:
                try:
                    following.append(next(items))
                except StopIteration as end:
                    failure = end
                    break
                except Exception as error:
                    failure = error
                    break
            if not idle:
                break
            connection = idle.pop()
            waiting[handed_out], busy[connection] = following.pop(), handed_out
            _send(connection, waiting[handed_out], workers[connection])
            handed_out += 1
        while given in results:
            succeeded, result = results.pop(given)
            if not succeeded:
                raise result
            yield waiting.pop(given), result
            given += 1
        if given == handed_out and failure is not None:
            if not isinstance(failure, StopIteration):
                raise failure
            return
        ready: list[Any] = wait(list(busy))
        for connection in ready:
            place = busy.pop(connection)
            try:
                results[place] = connection.recv()
            except (EOFError, ConnectionError):
                raise _ended(workers[connection]) from None
            idle.append(connection)


def _send(connection: Connection, item: Any, process: Any) -> None:
    try:
        connection.send(item)
    except ConnectionError:
        raise _ended(process) from None


def _ended(process: Any) -> StageInterrupted:
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return StageKilled("One of the processes that share the work was killed, mostly for want of memory.")
    return StageInterrupted(f"One of the processes that share the work ended early (exit status {process.exitcode}).")


def _work(make: Callable[[int], Callable[[Any], Any]], number: int, connection: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = make(number)
    while True:
        item = connection.recv()
        try:
            result: tuple[bool, Any] = True, work(item)
        except Exception as error:
            result = False, error
        connection.send(result)
