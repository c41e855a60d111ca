"""Processes that ``xft ui`` runs beside it: started together, waited for, stopped in order with all that they started."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xft_core.errors import XftError

START_SECONDS = 180
GRACE_SECONDS = 20
POLL_SECONDS = 0.3


class Processes:
    """Processes by name, each with its log ``<name>.log``. The last one started is stopped first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Start ``command`` in a process group of its own."""
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True)

    def wait_until_up(self, name: str, address: str) -> None:
        """Wait until ``address`` answers. Raises XftError when the process ends before, or it takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._running[name].poll() is None:
            try:
                with urllib.request.urlopen(address, timeout=2):
                    return
            except OSError:
                time.sleep(POLL_SECONDS)
        raise XftError(f"{name} did not start; see {str(self._log(name))!r}.")

    def watch(self) -> None:
        """Wait until one of them ends, which none should. Raises XftError then."""
        while True:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise XftError(f"{name} ended by itself; see {str(self._log(name))!r}.")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End all: SIGTERM, and SIGKILL after a while, to each and what it started."""
        for process in reversed(self._running.values()):
            groups = _groups(process.pid)
            _signal(groups, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and (process.poll() is None or any(map(_is_alive, groups))):
                time.sleep(0.1)
            _signal(groups, signal.SIGKILL)
            process.wait()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name.lower()}.log"


@contextmanager
def processes(logs: Path) -> Iterator[Processes]:
    """Processes that are all stopped when the block ends, however it ends."""
    logs.mkdir(parents=True, exist_ok=True)
    found = Processes(logs)
    try:
        yield found
    finally:
        ignore_interrupts()
        found.stop()


def ignore_interrupts() -> None:
    """From now on, Ctrl-C changes nothing: a second one must not leave half of the processes behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _groups(pid: int) -> list[int]:
    """The process group of ``pid`` and those of its descendants: a worker starts each run in a group of its own."""
    parents: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = (int(fields[1]), int(fields[2]))
    family = {pid}
    while more := {child for child, (parent, _) in parents.items() if parent in family} - family:
        family |= more
    return sorted({parents[member][1] for member in family if member in parents} | {pid})


def _signal(groups: list[int], number: signal.Signals) -> None:
    for group in groups:
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            pass


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
