"""The time in which a process could have worked: what the clock says, less what it waited for a processor.

Alone on a machine that is the clock's time, as evalplus takes it: a program that sleeps uses its time up. Beside others
it is the same, however long they keep the processors. The kernel counts the waiting of a process's first thread, in which
samples run, in /proc/PID/schedstat; where it does not, this is the clock.
"""

import os
from os import pread
from time import monotonic  # names of this module: a sample may replace those of time and os

SCHEDSTAT = "/proc/self/schedstat"


def open_schedstat() -> int | None:
    """A descriptor by which anyone who has it can read how long this process has waited; None where that is not told."""
    try:
        return os.open(SCHEDSTAT, os.O_RDONLY)
    except OSError:
        return None


class Stopwatch:
    """Runs from when it is made; ``schedstat`` says whose time it is."""

    def __init__(self, schedstat: int | None) -> None:
        self._schedstat, self._waited = schedstat, 0.0
        self._clock, self._before = monotonic(), self._waiting()

    def clock_seconds(self) -> float:
        """What the clock says."""
        return monotonic() - self._clock

    def seconds(self) -> float:
        """The same less the waiting."""
        return self.clock_seconds() - (self._waiting() - self._before)

    def _waiting(self) -> float:
        if self._schedstat is not None:
            try:
                self._waited = int(pread(self._schedstat, 100, 0).split()[1]) / 1e9
            except (OSError, ValueError, IndexError):  # the process is gone: it waits no more
                pass
        return self._waited
