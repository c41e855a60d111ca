"""Compute slots: how many heavy stages run at once on this machine.

A slot is a locked file. The operating system gives it back when its holder dies, however it dies; a limit kept in
Prefect's database would stay taken, and would make reused stages wait too.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.stopping import RunStopped
from xft_core.files.disk import file_lock

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
            with file_lock(locks / f"compute-{number}.lock", wait=False) as held:
                if held is not None:
                    yield number
                    return
        if not waited:
            waited = True
            on_wait()
        if stop.wait(POLL_SECONDS):
            raise RunStopped("The run was stopped while this stage waited for a compute slot.")
