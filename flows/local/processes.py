"""Child processes of ``xft ui``: start them together, wait for them, and end them in order with their descendants.

A guard (``flows/local/guard.py``) ends them, so that they end even if ``xft ui`` is killed.
"""

import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.local import guard
from xft_core.errors import XftError

START_SECONDS = 600  # as in embedded_api.py
POLL_SECONDS = 0.3


class Processes:
    """Processes by name, each with its log ``<name>.log``. The last one to start ends first."""

    def __init__(self, logs: Path, keep_open: tuple[int, ...] = ()) -> None:
        """``keep_open``: file descriptors, for example of locks, that stay open until all processes have ended."""
        self._logs = logs
        self._owner = uuid.uuid4().hex
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        with self._log("Guard").open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, self._owner], stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=keep_open, text=True)

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Start ``command`` in its own session, so that Ctrl-C in the terminal reaches only ``xft ui``."""
        assert self._guard.stdin is not None
        print(name, file=self._guard.stdin, flush=True)
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, env=environment | {guard.MARK: guard.mark(self._owner, name)}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def wait_until_up(self, name: str, address: str) -> None:
        """Wait until ``address`` answers. Raises XftError if the process ends first or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._running[name].poll() is None:
            try:
                with urllib.request.urlopen(address, timeout=2):
                    return
            except OSError:
                time.sleep(POLL_SECONDS)
        raise XftError(f"{name} did not start; see {str(self._log(name))!r}.")

    def watch(self) -> None:
        """Wait until a process ends, which is an error, and raise XftError."""
        while True:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise XftError(f"{name} ended by itself; see {str(self._log(name))!r}.")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End all processes and their descendants."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        for process in self._running.values():
            process.wait()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name.lower()}.log"


@contextmanager
def processes(logs: Path, keep_open: tuple[int, ...] = ()) -> Iterator[Processes]:
    """Yield processes that all end with the block, even if it raises."""
    logs.mkdir(parents=True, exist_ok=True)
    found = Processes(logs, keep_open)
    try:
        yield found
    finally:
        ignore_interrupts()
        found.stop()


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from now on, so that ending the processes is not interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
