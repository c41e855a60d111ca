"""Compute slots: how many heavy stages run at once on this machine.

A slot is a locked file. The operating system gives it back when its holder dies, however it dies; a limit kept in
Prefect's database would stay taken, and would make reused stages wait too.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.stopping import RunStopped
from xft_core.files.disk import file_lock

POLL_SECONDS = 0.2


@contextmanager
def compute_slot(
    locks: Path, slots: int, stop: threading.Event, holder: str = "", on_wait: Callable[[str], None] = lambda holders: None,
) -> Iterator[int]:
    """Hold one of ``slots`` slots; yields its number. ``holder``: who holds it, for those who wait. Calls ``on_wait`` once,
    with the names of the holders, if none is free at first.

    Raises RunStopped when ``stop`` is set while waiting.
    """
    locks.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        for number in range(slots):
            with file_lock(locks / f"compute-{number}.lock", wait=False) as held:
                if held is not None:
                    held.truncate(0)
                    print(holder, file=held, flush=True)
                    yield number
                    return
        if not waited:
            waited = True
            on_wait(_holders(locks, slots))
        if stop.wait(POLL_SECONDS):
            raise RunStopped("The run was stopped while this stage waited for a compute slot.")


def _holders(locks: Path, slots: int) -> str:
    found = []
    for number in range(slots):
        with suppress(OSError):
            found.append((locks / f"compute-{number}.lock").read_text(encoding="utf-8").strip())
    return "; ".join(filter(None, found)) or "unknown"
