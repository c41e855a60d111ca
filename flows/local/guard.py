"""End the processes that ``xft ui`` started when ``xft ui`` ends for any reason: Ctrl-C, an error, SIGKILL.

The guard runs as a separate process, by path and with only the standard library. It reads process names, one per line, until
the kernel closes its standard input. Then it ends the processes, the last one first, each with its descendants. It finds them
by a mark in the environment, which children inherit: a worker starts every run in its own process group, and a killed worker
is no longer the parent of its runs.
"""

import os
import signal
import sys
import time
from pathlib import Path

MARK = "XFT_UI_PROCESS"
GRACE_SECONDS = 20
POLL_SECONDS = 0.1


def main(owner: str) -> None:
    """End the processes with the marks of ``owner`` when standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for name in reversed([line.strip() for line in sys.stdin]):
        end(mark(owner, name))


def mark(owner: str, name: str) -> str:
    """Return the value of the environment variable MARK for process ``name`` and its descendants."""
    return f"{owner}:{name}"


def end(value: str) -> None:
    """Send SIGTERM to each process with that mark, then SIGKILL to those that remain."""
    _signal(value, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while marked(value):
        if time.monotonic() > deadline:
            _signal(value, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def marked(value: str) -> list[int]:
    """Return the ids of the processes with that mark. A process that has ended and waits for its parent has no environment."""
    wanted = f"{MARK}={value}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


def _signal(value: str, number: signal.Signals) -> None:
    for pid in marked(value):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


if __name__ == "__main__":
    main(sys.argv[1])
