"""Make Prefect's log readable: explained failures appear once, without a stack trace. Losing the log does not end a run."""

import logging
import os
import re
from typing import Any

from rich.console import Console

from tasks.settings import without_credentials
from xft_core.errors import XftError, first_line

Logger = logging.Logger | logging.LoggerAdapter[Any]
CAUSE = re.compile(r"Caused by \w+\(.*: (.*?)['\")]*$")  # at the end of a long line from requests

# How a run, and the process that a worker starts for it, log an exception.
REPEATED = ("Encountered exception during execution", "Engine execution exited with unexpected exception")

_left_out = ["Starting temporary server", "Stopping temporary server"]


def leave_out(beginning: str) -> None:
    """Hide records whose message starts with ``beginning``."""
    _left_out.append(beginning)


class Readable(logging.Filter):
    """Remove stack traces from explained failures, and hide lines that only repeat others or mean nothing to users."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to show the record. Drops its stack trace if the failure is an XftError."""
        message = record.getMessage()
        if message.startswith(tuple(_left_out)):
            return False
        if "Finished in state NotReady" in message:  # a stage after a failed one; the failed one says why
            return False
        if record.exc_info and isinstance(record.exc_info[1], XftError):
            record.exc_info = None
            # The flow's final state, which is also logged, says the same.
            return not message.startswith(REPEATED)
        return True


def _go_on_unread(console: Console) -> None:
    """Continue without output after the reader of the log, for example a worker, has died. Rich would end the process and lose
    hours of work."""
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, console.file.fileno())
    os.close(nowhere)


def install() -> None:
    """Apply the filter to Prefect's log of flow and task runs. Calling it again changes nothing."""
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(item, Readable) for item in logger.filters):
            logger.addFilter(Readable())
    Console.on_broken_pipe = _go_on_unread  # type: ignore[method-assign, assignment]
    # For an unavailable server we log one line, instead of one from urllib3 for every attempt.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def reason(error: Exception) -> str:
    """Return the first line of the error, without the password of any server address in it."""
    line = without_credentials(first_line(error, longest=10_000))  # cut inside an address, a password would not be seen
    cause = CAUSE.search(line)
    return f"{cause[1]}." if cause else line
