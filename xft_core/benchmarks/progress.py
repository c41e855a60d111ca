"""Progress of a stage through its problems: lines in the log, or a bar on a terminal."""

import logging
import time

from tqdm import tqdm

from xft_core.runtime.progress import on_terminal
from xft_core.runtime.quantities import duration

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts problems: ``generate 32/164 problems, 41.2 problems/min, about 3 min left``, at most every 5 s.

    The speed counts only this start; problems that an earlier start finished (``done``) do not raise it.
    """

    def __init__(self, logger: logging.Logger, stage: str, total: int, done: float = 0) -> None:
        self._logger, self._stage, self._total = logger, stage, total
        self._done = self._done_before = done
        self._started = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=stage, unit="problem", leave=False) if on_terminal() else None

    def advance(self, problems: float) -> None:
        """Count ``problems`` more as done; a fraction if a problem has several samples."""
        self._done += problems
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(problems)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES and self._done < self._total:
            self._last_line = now
            per_minute = 60 * (self._done - self._done_before) / (now - self._started)
            left = duration(60 * (self._total - self._done) / per_minute)
            self._logger.info("%s %d/%d problems, %.1f problems/min, about %s left",
                              self._stage, self._done, self._total, per_minute, left)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

