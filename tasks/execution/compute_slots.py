"""Compute slots: how many heavy stages run at once on this machine.

A slot is a locked file. The operating system gives it back when its holder dies, however it dies; a limit kept in
Prefect's database would stay taken, and would make reused stages wait too.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.stopping import RunStopped
from xft_core.files.disk import file_lock

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Turn:
    """When a stage gets a slot, among those that wait. The run that started first comes first, so that runs end before new
    ones begin. Within a run it is the stage with the most steps behind it, because the run takes as long as they do.

    ``run_started``: seconds since 1970; ``steps_behind``: see recipe/steps.py.
    """

    run_started: float = 0.0
    steps_behind: int = 0

    def file_name(self) -> str:
        """The name of the waiting stage's file. Names sort in the order of turns, and equal turns in the order of asking."""
        microseconds, far = round(self.run_started * 1e6), 999 - self.steps_behind
        return f"{microseconds:020d}-{far:03d}-{time.time_ns():020d}-{threading.get_native_id()}"


@contextmanager
def compute_slot(
    locks: Path, slots: int, stop: threading.Event, holder: str = "", on_wait: Callable[[str], None] = lambda holders: None,
    turn: Turn | None = None,
) -> Iterator[int]:
    """Hold one of ``slots`` slots; yields its number. ``holder``: who holds it, for those who wait. Calls ``on_wait`` once,
    with the names of the holders, if none is free at first. A free slot goes to the first ``turn``.

    Raises RunStopped when ``stop`` is set while waiting.
    """
    with ExitStack() as held:
        with _waiting(locks / "waiting", turn or Turn()) as ticket:
            waited = False
            while (number := _take(locks, slots, holder, held) if _is_next(ticket) else None) is None:
                if not waited:
                    waited = True
                    on_wait(_holders(locks, slots))
                if stop.wait(POLL_SECONDS):
                    raise RunStopped("The run was stopped while this stage waited for a compute slot.")
        yield number


def _take(locks: Path, slots: int, holder: str, held: ExitStack) -> int | None:
    """The number of a slot that was free and is now ``held``, if there is one."""
    for number in range(slots):
        with ExitStack() as opened:
            slot = opened.enter_context(file_lock(locks / f"compute-{number}.lock", wait=False))
            if slot is not None:
                slot.truncate(0)
                print(holder, file=slot, flush=True)
                held.enter_context(opened.pop_all())
                return number
    return None


@contextmanager
def _waiting(directory: Path, turn: Turn) -> Iterator[Path]:
    """The waiting stage's file, locked while it waits. A killed process leaves its file behind, unlocked."""
    directory.mkdir(parents=True, exist_ok=True)
    ticket = directory / turn.file_name()
    with file_lock(ticket):
        try:
            yield ticket
        finally:
            ticket.unlink(missing_ok=True)


def _is_next(ticket: Path) -> bool:
    """Whether no stage with an earlier turn waits. Removes files that killed processes left behind."""
    for other in sorted(ticket.parent.iterdir()):
        if other.name >= ticket.name:
            return True
        with suppress(FileNotFoundError), file_lock(other, wait=False, create=False) as left:
            if left is None:
                return False
            other.unlink()
    return True


def _holders(locks: Path, slots: int) -> str:
    found = []
    for number in range(slots):
        with suppress(OSError):
            found.append((locks / f"compute-{number}.lock").read_text(encoding="utf-8").strip())
    return "; ".join(filter(None, found)) or "unknown"
