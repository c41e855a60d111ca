"""Who is at work on an MLflow run: a locked file per open run, so that runs whose process died can be closed.

A process that is killed cannot end its runs. The lock it held is free then, and the next run that starts with the same
XFT_HOME sets those runs to KILLED.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def owned(directory: Path, name: str) -> Iterator[None]:
    """Hold ``name`` while the block runs; nothing is left of it afterwards unless the process is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def close_abandoned(directory: Path, close: Callable[[str], None]) -> None:
    """Call ``close`` with every name whose owner is dead. One that ``close`` fails for is let go."""
    for path in directory.glob("*") if directory.is_dir() else ():
        with suppress(OSError), path.open("r+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            with suppress(Exception):  # another tracking server's run, or one deleted there: not ours to close
                close(path.name)
            path.unlink(missing_ok=True)
