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
            running += sum(map(int, _stat(process)[11:15])) / TICKS  # utime to cstime
            for thread in Path(f"/proc/{process}/task").iterdir():
                waiting += int((thread / "schedstat").read_text().split()[1]) / 1e9
                told = True
        except (OSError, ValueError, IndexError):  # it has ended, or there is no such file
            continue
    return Time(running, waiting if told else None)


class RunningTime:
    """Seconds in which process ``pid`` and all below it ran, looked at again and again. A process whose parent ignores that
    children end is in nobody's sum once it has ended: what was seen of it counts here still."""

    def __init__(self, pid: int) -> None:
        self._pid, self._seen = pid, dict[tuple[int, str], float]()

    def seconds(self) -> float:
        """As far as it is known now."""
        for process in tree(self._pid):
            try:
                fields = _stat(process)
            except (OSError, IndexError):  # it has ended
                continue
            self._seen[process, fields[19]] = sum(map(int, fields[11:13])) / TICKS  # its start: numbers are used again
        return max(time_of(self._pid).running, sum(self._seen.values()))


def _stat(process: int) -> list[str]:
    """Fields 3 and on of /proc/PID/stat; the name before them, in brackets, may hold anything."""
    return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()


def is_overloaded(time: Time, seconds: float) -> bool:
    """Whether a program that took ``seconds`` on the clock may have lost its time to other work."""
    if time.waiting is None:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
    return time.waiting > MAX_WAITING * seconds
