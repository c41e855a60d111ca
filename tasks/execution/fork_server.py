"""Stages as forks of one process that has torch and transformers imported (``xft_core/runtime/fork_server.py``).

This process has at most one such server, started for the first stage that has work to do. A dead server is replaced, and so is
one whose environment or code differs from that of new stages, unless stages still run in it.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import xft_core
from xft_core.stages.configs import STAGES

POLL_SECONDS = 0.2
ROOM = " " * 1024  # for a child's command line
MODULES = ("torch", "transformers", *sorted({stage.implementation for stage in STAGES.values()}))

_lock = threading.Lock()
_server: "_Server | None" = None


def start(
    command: list[str], environment: Mapping[str, str], stdout: IO[bytes], stop: threading.Event,
) -> "ForkedProcess | None":
    """Start ``command`` (``[PYTHON, "-P", "-m", MODULE, ...]``) as a fork that leads its own session.

    Returns None if it has not started, because no server could be started or ``stop`` was set while the server was importing.
    The caller then starts a fresh process, or none.
    """
    global _server
    with _lock:
        code = _code()
        if _server is None or not _server.fits(environment, code):
            if _server is not None and (_server.processes or _server.is_useless()):
                return None
            end()
            _server = _Server(environment, code)
        process = _server.fork(command, stdout)
    return process if process.has_started(stop) else None


def end() -> None:
    """End the server and everything that runs in it."""
    global _server
    if _server is not None:
        _server.close()
        _server = None


atexit.register(end)


class ForkedProcess:
    """A child of the server, with the necessary part of subprocess.Popen's interface."""

    def __init__(self, server: "_Server", report: int, stderr: IO[bytes]) -> None:
        self.pid = 0
        self.stderr = stderr
        self.returncode: int | None = None
        self._server = server
        self._report = report
        self._text = b""
        server.processes.add(self)

    def has_started(self, stop: threading.Event) -> bool:
        """Wait until the child has started. Returns False if ``stop`` is set first, or if the server ends."""
        value = None
        try:
            while value is None and not stop.is_set():
                value = self._next(POLL_SECONDS)
        finally:
            if not value:  # kills the child if it has started after all
                self._close()
                self.stderr.close()
        if not value:
            return False
        self._server.has_forked = True
        self.pid = int(value)
        return True

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal that ended it; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            value = self._next(timeout)
            if value is None:
                raise subprocess.TimeoutExpired("stage", timeout or 0)
            self._close()
            self.returncode = int(value) if value else self._end_without_server()
        return self.returncode

    def _next(self, timeout: float | None) -> str | None:
        """Return the value of the server's next report; "" if no more can come, None if none comes in time."""
        while b"\n" not in self._text:
            if not select.select([self._report], [], [], timeout)[0]:
                return None
            chunk = os.read(self._report, 100)
            if not chunk:
                return ""
            self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        return line.decode().split()[1]

    def _end_without_server(self) -> int:
        """End a child whose server died. The kernel has sent it SIGTERM; its real exit status is lost."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return -signal.SIGTERM
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        select.select([process], [], [])
        os.close(process)
        return -signal.SIGTERM

    def _close(self) -> None:
        os.close(self._report)
        self._server.processes.discard(self)


class _Server:
    def __init__(self, environment: Mapping[str, str], code: int) -> None:
        self.processes: set[ForkedProcess] = set()
        self.has_forked = False
        self._environment, self._code = dict(environment), code
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "xft_core.runtime.fork_server", ROOM, *MODULES], stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=self._environment)

    def fits(self, environment: Mapping[str, str], code: int) -> bool:
        """Return whether a stage in it runs as it would in a fresh process."""
        return self._process.poll() is None and self._environment == environment and self._code == code

    def is_useless(self) -> bool:
        """Return whether it ended before it forked anything. Another server would, too."""
        return self._process.poll() is not None and not self.has_forked

    def fork(self, command: list[str], stdout: IO[bytes]) -> ForkedProcess:
        """Request a child. If it can no longer start, its report ends at once."""
        stderr, their_stderr = os.pipe()
        report, their_report = os.pipe()
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        process = ForkedProcess(self, report, open(stderr, "rb", buffering=0))
        with suppress(ConnectionError):
            socket.send_fds(
                self._control, [json.dumps(command).encode()], [stdout.fileno(), their_stderr, directory, their_report])
        for descriptor in (their_stderr, their_report, directory):
            os.close(descriptor)
        return process

    def close(self) -> None:
        self._control.close()
        self._process.terminate()
        self._process.wait()


def _code() -> int:
    """Return a number that changes when a source file of ``xft_core`` changes."""
    files = Path(xft_core.__file__).parent.rglob("*.py")
    return hash(tuple(sorted((str(path), path.stat().st_mtime_ns) for path in files)))
