"""Ownership of runs: a locked file for each, so that runs of dead processes that are still open in MLflow can be closed.

A killed process cannot end its runs, but its lock becomes free, and the next run with the same XFT_HOME ends them in MLflow.
The same happens for a run that could not report how it ended because MLflow was unavailable.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xft_core.files.disk import file_lock


@dataclass
class Owner:
    """``told``: how the run ended, if that could not be reported. The next run reports it."""

    told: str = ""


@contextmanager
def owned(directory: Path, name: str) -> Iterator[Owner]:
    """Hold ``name`` while the block runs. Its file is removed afterwards, unless the process is killed or ``told`` is set."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    owner = Owner()
    with file_lock(path) as stream:
        assert stream is not None
        stream.truncate(0)  # removes the report of an earlier owner of this name
        try:
            yield owner
        finally:
            if owner.told:
                stream.write(owner.told)
                stream.flush()
            else:
                path.unlink(missing_ok=True)


def close_abandoned(directory: Path, close: Callable[[str, str], None]) -> None:
    """Call ``close`` with every name whose owner has ended, and how it ended: KILLED unless the owner left a report.

    An exception in ``close`` propagates; the remaining names are closed another time.
    """
    for path in sorted(directory.glob("*")) if directory.is_dir() else ():
        with suppress(FileNotFoundError), file_lock(path, wait=False, create=False) as stream:
            if stream is None:
                continue
            close(path.name, stream.read().strip() or "KILLED")
            path.unlink(missing_ok=True)
