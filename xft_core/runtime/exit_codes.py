"""Exit statuses of all our commands and processes."""

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit status of a process. Signals are 128 plus their number, as shells report them."""

    DONE = 0
    FAILED = 1  # a stage failed, or a bug
    MISTAKE = 2  # a user error; the message explains how to fix it
    MAY_PASS = 75  # the same command may succeed when started again
    INTERRUPTED = 128 + signal.SIGINT
    KILLED = 128 + signal.SIGKILL  # one of a stage's processes was killed
    CLOSED_PIPE = 128 + signal.SIGPIPE  # nobody reads the output
