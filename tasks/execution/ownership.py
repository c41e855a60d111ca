"""Who is at work on a run: a locked file for each, so that what a process that died left open in MLflow can be closed.

A process that is killed cannot end its runs. The lock it held is free then, and the next run that starts with the same
XFT_HOME ends them there. So it does for a run that could not say how it ended, because MLflow was away.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xft_core.files.disk import file_lock


@dataclass
class Owner:
    """``told``: how the run ended, if nobody could be told; who comes next tells it."""

    told: str = ""


@contextmanager
def owned(directory: Path, name: str) -> Iterator[Owner]:
    """Hold ``name`` while the block runs; nothing is left of it afterwards unless the process is killed, or ``told`` is
    set."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    owner = Owner()
    with file_lock(path) as stream:
        assert stream is not None
        stream.truncate(0)  # the word of an earlier owner of this name
        try:
            yield owner
        finally:
            if owner.told:
                stream.write(owner.told)
                stream.flush()
            else:
                path.unlink(missing_ok=True)


def close_abandoned(directory: Path, close: Callable[[str, str], None]) -> None:
    """Call ``close`` with every name whose owner is dead or gone, and how it ended: KILLED unless the owner left word.

    What ``close`` raises ends it; the names left are closed another time.
    """
    for path in sorted(directory.glob("*")) if directory.is_dir() else ():
        with suppress(FileNotFoundError), file_lock(path, wait=False, create=False) as stream:
            if stream is None:
                continue
            close(path.name, stream.read().strip() or "KILLED")
            path.unlink(missing_ok=True)
