"""Compute slots: how many heavy stages run at once on this machine.

A slot is a locked file. The operating system releases it when its holder dies for any reason. A limit in Prefect's database
would stay occupied, and would make reused stages wait too.
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
    """The order in which waiting stages get a slot. The run that started first comes first, so that runs end before new ones
    begin. Within a run, the stage with the most steps behind it comes first, because those steps determine the run's length.

    ``run_started``: seconds since 1970; ``steps_behind``: see recipe/steps.py.
    """

    run_started: float = 0.0
    steps_behind: int = 0

    def file_name(self) -> str:
        """Return the name of the waiting stage's file. Names sort in the order of turns, and equal turns by time of request."""
        microseconds, far = round(self.run_started * 1e6), 999 - self.steps_behind
        return f"{microseconds:020d}-{far:03d}-{time.time_ns():020d}-{threading.get_native_id()}"


@contextmanager
def compute_slot(
    locks: Path, slots: int, stop: threading.Event, holder: str = "", on_wait: Callable[[str], None] = lambda holders: None,
    turn: Turn | None = None,
) -> Iterator[int]:
    """Hold one of ``slots`` slots; yields its number. ``holder``: a name that waiting stages see. Calls ``on_wait`` once,
    with the names of the holders, if none is free at first. A free slot goes to the first ``turn``.

    Raises RunStopped if ``stop`` is set while waiting.
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
    """Take a free slot into ``held`` and return its number, if there is one."""
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
    """Yield the waiting stage's file, locked while it waits. A killed process leaves its file behind, unlocked."""
    directory.mkdir(parents=True, exist_ok=True)
    ticket = directory / turn.file_name()
    with file_lock(ticket):
        try:
            yield ticket
        finally:
            ticket.unlink(missing_ok=True)


def _is_next(ticket: Path) -> bool:
    """Return whether no stage with an earlier turn waits. Removes files that killed processes left behind."""
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
