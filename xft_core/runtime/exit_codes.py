"""Exit statuses of every command and process of ours."""

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """How a process ended. Signals are 128 plus their number, as a shell reports them."""

    DONE = 0
    FAILED = 1  # a stage failed, or a fault of the program
    MISTAKE = 2  # the message says what to change
    MAY_PASS = 75  # the same command may succeed when started again
    INTERRUPTED = 128 + signal.SIGINT
    KILLED = 128 + signal.SIGKILL  # one of a stage's processes was killed
    CLOSED_PIPE = 128 + signal.SIGPIPE  # nobody reads the output
