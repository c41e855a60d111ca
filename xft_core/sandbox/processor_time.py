"""Processor time of a program and all it started, and whether the machine had too much to do beside it."""

import os
from dataclasses import dataclass
from pathlib import Path

from xft_core.sandbox.memory import tree

TICKS = os.sysconf("SC_CLK_TCK")
# Of the time that a program had, the part that it may have waited for a processor on a machine that is not overloaded.
MAX_WAITING = 0.2


@dataclass(frozen=True)
class Time:
    """Seconds in which processes ran, and in which they could have run but had no processor; of all together. None: the
    kernel does not tell the latter."""

    running: float
    waiting: float | None


def time_of(pid: int) -> Time:
    """Of process ``pid`` and all below it. The running of those that have ended and were waited for is in it."""
    running, waiting, told = 0.0, 0.0, False
    for process in tree(pid):
        try:
            # The name, in brackets, may hold anything; after it, fields 3 and on: utime to cstime are 14 to 17.
            fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
            running += sum(map(int, fields[11:15])) / TICKS
            for thread in Path(f"/proc/{process}/task").iterdir():
                waiting += int((thread / "schedstat").read_text().split()[1]) / 1e9
                told = True
        except (OSError, ValueError, IndexError):  # it has ended, or there is no such file
            continue
    return Time(running, waiting if told else None)


def is_overloaded(time: Time, seconds: float) -> bool:
    """Whether a program that took ``seconds`` on the clock may have lost its time to other work."""
    if time.waiting is None:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
    return time.waiting > MAX_WAITING * seconds
