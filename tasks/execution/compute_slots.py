"""Compute slots: how many heavy stages run at once on this machine.

A slot is a locked file. The operating system gives it back when its holder dies, however it dies; a limit kept in
Prefect's database would stay taken, and would make reused stages wait too.
"""

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.stopping import RunStopped

POLL_SECONDS = 0.2


@contextmanager
def compute_slot(
    locks: Path, slots: int, stop: threading.Event, on_wait: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Hold one of ``slots`` slots; yields its number. Calls ``on_wait`` once if none is free at first.

    Raises RunStopped when ``stop`` is set while waiting.
    """
    locks.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        for number in range(slots):
            with (locks / f"compute-{number}.lock").open("a") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        if not waited:
            waited = True
            on_wait()
        if stop.wait(POLL_SECONDS):
            raise RunStopped("The run was stopped while this stage waited for a compute slot.")
