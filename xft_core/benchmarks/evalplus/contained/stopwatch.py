"""The time in which a process could have worked: clock time, less the time that it waited for a processor.

For a process alone on a machine, this is clock time, as evalplus measures it: a program that sleeps uses up its time. Other
processes do not change it, however long they keep the processors. The kernel counts the waiting of a process's first thread,
in which samples run, in /proc/PID/schedstat; if it does not, this is clock time.
"""

import os
from os import pread
from time import monotonic  # names of this module: a sample may replace those of time and os

SCHEDSTAT = "/proc/self/schedstat"


def open_schedstat() -> int | None:
    """A descriptor that lets its holder read how long this process has waited; None if the kernel does not report it."""
    try:
        return os.open(SCHEDSTAT, os.O_RDONLY)
    except OSError:
        return None


class Stopwatch:
    """A stopwatch that starts when it is created; ``schedstat`` selects the process."""

    def __init__(self, schedstat: int | None) -> None:
        self._schedstat, self._waited = schedstat, 0.0
        self._clock, self._before = monotonic(), self._waiting()

    def clock_seconds(self) -> float:
        """Clock time."""
        return monotonic() - self._clock

    def seconds(self) -> float:
        """Clock time, less the waiting."""
        return self.clock_seconds() - (self._waiting() - self._before)

    def _waiting(self) -> float:
        if self._schedstat is not None:
            try:
                self._waited = int(pread(self._schedstat, 100, 0).split()[1]) / 1e9
            except (OSError, ValueError, IndexError):  # the process has ended and no longer waits
                pass
        return self._waited
