"""Share work among several processes: forks of this process do its parts in turn, and the results arrive in order."""

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
    """Yield for every part, in order, the result of ``do`` (buffers, as bytes) and None, or no buffers and the part itself.

    ``parts`` gives the same parts on every call; each process iterates over all of them and does every n-th. The caller gets
    the part itself if ``do`` returns None or raises an exception, so that its problem shows in this process. If ``processes``
    is 1, the caller gets every part.

    A process waits until its result is taken, so that memory does not grow with the number of parts. Close the generator
    after use (contextlib.closing): this ends all processes, which also end with this process in any case. Raises StageKilled
    if one of the processes was killed, and any exception that ``parts`` raises.
    """
    if processes == 1:
        yield from (([], part) for part in parts())
        return
    context = get_context("fork")  # forks share what is already loaded
    own, own_index = parts(), 0  # nothing is read before it is needed
    workers, connections = [], []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_serve, args=(theirs, parts, do, number, processes, os.getpid()))
            worker.start()
            theirs.close()  # so that the connection ends with the worker
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
                    "One of the processes that share the work was killed, usually because memory ran out. A single process "
                    "needs the least memory: set OMP_NUM_THREADS=1.") from None
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
    """Do the parts of one process. It does not end by itself, because others may still be working: the parent kills it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent also gets it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        return
    # Repeated garbage collection over all objects takes a third of the time, and copies memory shared with the parent.
    gc.freeze()
    gc.disable()
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent has ended
        try:
            for part in islice(parts(), number, None, processes):
                try:
                    result = do(part)
                except Exception:  # the parent repeats the part and reports the error
                    result = None
                _send(connection, result)
                del part, result
                gc.collect()
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:  # raised while reading the parts
            while True:  # until the parent gets the same exception
                _send(connection, None)
        connection.send_bytes(END)
        signal.pause()


def _send(connection: Connection, result: Sequence[Any] | None) -> None:
    connection.send_bytes(AGAIN if result is None else str(len(result)).encode())
    for part in result or ():
        connection.send_bytes(memoryview(part).cast("B") if len(part) else b"")
