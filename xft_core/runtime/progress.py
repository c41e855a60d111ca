"""Progress as text for logs; terminals show a bar instead."""

import sys
import time

from xft_core.runtime.quantities import duration

_started: dict[str, tuple[float, int]] = {}


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def describe_progress(what: str, done: int, total: int, detail: str) -> str:
    """``sft 120/400 (30%), <detail>, about 2 min left``; the rate counts from the first call for ``what``."""
    started, done_then = _started.setdefault(what, (time.monotonic(), done))
    text = f"{what} {done}/{total} ({done / max(total, 1):.0%}), {detail}"
    if done > done_then and done < total:
        left = (time.monotonic() - started) / (done - done_then) * (total - done)
        text += f", about {duration(left)} left"
    return text
