"""Progress in words, for logs; a bar is for terminals."""

import sys
import time

_started: dict[str, tuple[float, int]] = {}


def on_terminal() -> bool:
    """Whether a person watches standard error."""
    return sys.stderr.isatty()


def describe_progress(what: str, done: int, total: int, detail: str) -> str:
    """``sft 120/400 (30%), <detail>, about 2 min 10 s left``; the rate is that since the first call for ``what``."""
    started, done_then = _started.setdefault(what, (time.monotonic(), done))
    text = f"{what} {done}/{total} ({done / max(total, 1):.0%}), {detail}"
    if done > done_then and done < total:
        left = (time.monotonic() - started) / (done - done_then) * (total - done)
        text += f", about {describe_seconds(left)} left"
    return text


def describe_seconds(seconds: float) -> str:
    """A duration as people say it: ``45 s``, ``2 min 10 s``, ``3 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
