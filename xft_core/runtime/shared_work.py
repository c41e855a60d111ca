"""Work that several processes share: forks of this one do its parts by turns, and the results come in order."""

import ctypes
import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from xft_core.errors import StageKilled
from xft_core.runtime.process import PARENT_DEATH_SIGNAL

AGAIN, END = b"again", b"end"
Part = TypeVar("Part")


def in_processes(
    parts: Callable[[], Iterator[Part]], do: Callable[[Part], Sequence[Any] | None], processes: int,
) -> Generator[tuple[list[bytes], Part | None], None, None]:
    """Of every part, in order: what ``do`` makes of it (buffers, as bytes) and None, or the part, for the caller to do.

    ``parts`` gives the same parts whenever it is called; each process goes through all of them, and does every n-th. The
    caller gets a part for which ``do`` returns None or raises anything: what is wrong with it then shows in this process. It
    gets all of them where ``processes`` is 1.

    A process waits until its result was taken, so that memory does not grow with the parts. To be closed after use
    (contextlib.closing): no process is left then, nor when this process ends, however it does. Raises StageKilled if one of
    the processes was killed, and what ``parts`` raises.
    """
    if processes == 1:
        yield from (([], part) for part in parts())
        return
    context = get_context("fork")  # what was loaded is there already
    own, own_index = parts(), 0  # nothing is read before it is needed
    workers, connections = [], []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_serve, args=(theirs, parts, do, number, processes, os.getpid()))
            worker.start()
            theirs.close()  # so that the worker's end is the connection's
            workers.append(worker)
            connections.append(ours)
        index = 0
        while True:
            connection = connections[index % processes]
            try:
                said = connection.recv_bytes()
                result = [connection.recv_bytes() for _ in range(int(said))] if said not in (AGAIN, END) else None
            except EOFError:
                raise StageKilled(
                    "One of the processes that share the work was killed, mostly for want of memory. One process alone needs "
                    "the least: set OMP_NUM_THREADS=1.") from None
            if said == END:
                return
            if result is not None:
                yield result, None
            else:
                for part in islice(own, index - own_index, index - own_index + 1):
                    yield [], part
                    break
                else:
                    return
                own_index = index + 1
            index += 1
    finally:
        for worker in workers:
            worker.kill()
        for worker, connection in zip(workers, connections, strict=True):
            worker.join()
            connection.close()


def _serve(
    connection: Connection, parts: Callable[[], Iterator[Part]], do: Callable[[Part], Sequence[Any] | None], number: int,
    processes: int, parent: int,
) -> None:
    """Do one process's parts. It does not end by itself, since others may not be as far yet: the parent kills it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the parent gets, too
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        return
    # Looking through all objects again and again takes a third of the time, and copies memory that is shared with the parent.
    gc.freeze()
    gc.disable()
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent has ended
        try:
            for part in islice(parts(), number, None, processes):
                try:
                    result = do(part)
                except Exception:  # whatever it is, the parent meets it again, and says so
                    result = None
                _send(connection, result)
                del part, result
                gc.collect()
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:  # of reading the parts
            while True:  # until the parent has met it, too
                _send(connection, None)
        connection.send_bytes(END)
        signal.pause()


def _send(connection: Connection, result: Sequence[Any] | None) -> None:
    connection.send_bytes(AGAIN if result is None else str(len(result)).encode())
    for part in result or ():
        connection.send_bytes(memoryview(part).cast("B") if len(part) else b"")
