"""Memory that a program and all it started really use, together. Address space is limited for each process by the kernel;
a limit on the whole would need a control group, which not every machine lets one make."""

import threading
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_READINGS = 0.2


class MemoryWatch:
    """While in the context, calls ``exceeded`` once as soon as process ``pid`` and all below it hold more than
    ``resident_bytes``."""

    def __init__(self, pid: int, resident_bytes: int, exceeded: Callable[[], None]) -> None:
        self._pid, self._resident_bytes, self._exceeded = pid, resident_bytes, exceeded
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_READINGS):
            processes = tree(self._pid)
            # What is shared counts in the first sum for everyone who shares it, and takes longer to tell apart.
            if sum(map(_resident, processes)) > self._resident_bytes < sum(map(_proportional, processes)):
                self._exceeded()
                return


def tree(pid: int) -> list[int]:
    """A process and all below it. What lost its parent in a process namespace hangs below the first process there."""
    found = [pid]
    for process in found:
        try:
            for thread in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def _resident(pid: int) -> int:
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:")


def _proportional(pid: int) -> int:
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") or _resident(pid)


def _kilobytes(path: Path, field: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:  # it has ended
        pass
    return 0
