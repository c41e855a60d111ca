"""Prefect's log, readable: what a message explains is shown without a stack trace, and once."""

import logging

from xft_core.errors import XftError

NOISE = ("Starting temporary server", "Stopping temporary server")


class Readable(logging.Filter):
    """Takes stack traces off explained failures, and leaves out lines that only repeat or mean nothing to people."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown; its stack trace is dropped when the failure is an XftError."""
        message = record.getMessage()
        if message.startswith(NOISE):
            return False
        if "Finished in state NotReady" in message:  # a stage after a failed one; the failed one says why
            return False
        if record.exc_info and isinstance(record.exc_info[1], XftError):
            record.exc_info = None
            # The flow's final state, logged next, says the same.
            return not message.startswith("Encountered exception during execution")
        return True


def install() -> None:
    """Apply to what Prefect says about flow and task runs. Calling it again changes nothing."""
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(item, Readable) for item in logger.filters):
            logger.addFilter(Readable())
