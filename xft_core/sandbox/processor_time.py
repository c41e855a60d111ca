"""Processor time of a program and everything it started, and whether the machine was overloaded meanwhile."""

import os
from dataclasses import dataclass
from pathlib import Path

from xft_core.sandbox.memory import tree

TICKS = os.sysconf("SC_CLK_TCK")
# On a machine that is not overloaded, a program waits for a processor at most this part of its time.
MAX_WAITING = 0.2


@dataclass(frozen=True)
class Time:
    """Seconds in which processes ran, and in which they could have run but had no processor; totals over all of them.
    ``waiting`` is None if the kernel does not report it."""

    running: float
    waiting: float | None


def time_of(pid: int) -> Time:
    """Time of process ``pid`` and its descendants, including the running time of those that ended and were waited for."""
    running, waiting, told = 0.0, 0.0, False
    for process in tree(pid):
        try:
            running += sum(map(int, _stat(process)[11:15])) / TICKS  # utime to cstime
            for thread in Path(f"/proc/{process}/task").iterdir():
                waiting += int((thread / "schedstat").read_text().split()[1]) / 1e9
                told = True
        except (OSError, ValueError, IndexError):  # it has ended, or there is no such file
            continue
    return Time(running, waiting if told else None)


class RunningTime:
    """Seconds in which process ``pid`` and its descendants ran, read repeatedly. If a parent ignores the end of its children,
    an ended child is in no process's sum; here the time seen so far still counts."""

    def __init__(self, pid: int) -> None:
        self._pid, self._seen = pid, dict[tuple[int, str], float]()

    def seconds(self) -> float:
        """The seconds known so far."""
        for process in tree(self._pid):
            try:
                fields = _stat(process)
            except (OSError, IndexError):  # it has ended
                continue
            self._seen[process, fields[19]] = sum(map(int, fields[11:13])) / TICKS  # with its start: ids are reused
        return max(time_of(self._pid).running, sum(self._seen.values()))


def _stat(process: int) -> list[str]:
    """Fields 3 and on of /proc/PID/stat. The name before them, in brackets, may contain anything."""
    return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()


def is_overloaded(time: Time, seconds: float) -> bool:
    """Whether a program that took ``seconds`` of wall-clock time may have lost its time to other work."""
    if time.waiting is None:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
    return time.waiting > MAX_WAITING * seconds
