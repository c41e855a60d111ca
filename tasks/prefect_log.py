"""Prefect's log, readable: what a message explains is shown without a stack trace, and once; and no condition of the run."""

import logging
import os
import re
from typing import Any

from rich.console import Console

from tasks.settings import without_credentials
from xft_core.errors import XftError, first_line

Logger = logging.Logger | logging.LoggerAdapter[Any]
CAUSE = re.compile(r"Caused by \w+\(.*: (.*?)['\")]*$")  # what requests puts at the end of a long line

# How an exception is logged by a run, and by the process that a worker starts for one.
REPEATED = ("Encountered exception during execution", "Engine execution exited with unexpected exception")

_left_out = ["Starting temporary server", "Stopping temporary server"]


def leave_out(beginning: str) -> None:
    """Show no record whose message begins like this."""
    _left_out.append(beginning)


class Readable(logging.Filter):
    """Takes stack traces off explained failures, and leaves out lines that only repeat or mean nothing to people."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown; its stack trace is dropped when the failure is an XftError."""
        message = record.getMessage()
        if message.startswith(tuple(_left_out)):
            return False
        if "Finished in state NotReady" in message:  # a stage after a failed one; the failed one says why
            return False
        if record.exc_info and isinstance(record.exc_info[1], XftError):
            record.exc_info = None
            # The flow's final state, which is logged too, says the same.
            return not message.startswith(REPEATED)
        return True


def _go_on_unread(console: Console) -> None:
    """Whoever read the log is dead, a worker for example. Rich would end the process, and with it hours of work."""
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, console.file.fileno())
    os.close(nowhere)


def install() -> None:
    """Apply to what Prefect says about flow and task runs. Calling it again changes nothing."""
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(item, Readable) for item in logger.filters):
            logger.addFilter(Readable())
    Console.on_broken_pipe = _go_on_unread  # type: ignore[method-assign, assignment]
    # A server that is away costs one line of ours, not one of urllib3's for every attempt.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def reason(error: Exception) -> str:
    """The first line of what went wrong; a server's address with a password in it may be a part of that."""
    line = without_credentials(first_line(error, longest=10_000))  # cut inside an address, a password would not be seen
    cause = CAUSE.search(line)
    return f"{cause[1]}." if cause else line
