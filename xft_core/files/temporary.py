"""Temporary directories that do not stay behind: each is locked by the process that created it while that process lives.

A killed process cannot remove its directories, but its locks are released. ``sweep``, at the start of the next command,
removes the directories that no process holds. The lock (flock) distinguishes living from dead processes even across
containers that share a disk, where process ids cannot.
"""

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

from xft_core.files.disk import lock

# The kinds and names of directories that we create, so that no other directory called xft-something is removed.
Kind = Literal["cache", "mlflow", "page", "report", "stage", "transfer", "unsafe", "verify", "work"]
DIGITS = 12
NAME = re.compile(rf"(?:.+\.)?xft-(?:{'|'.join(get_args(Kind))})-[0-9a-f]{{{DIGITS}}}")
# Not /tmp: programs in the sandbox have their own /tmp, so files that they need to see are kept here.
SHOWN_TO_SANDBOX = Path("/var/tmp")


class TemporaryDirectory:
    """An empty directory ``xft-<kind>-...``, for this user only, that exists until ``remove``.

    place: where to create it (default: the system's temporary directory).
    output: create it next to this path instead, to be renamed to it, with the default permissions of that location.
    """

    def __init__(self, kind: Kind, place: Path | None = None, *, output: Path | None = None) -> None:
        place = output.parent if output else place or Path(tempfile.gettempdir())
        while True:
            name = f"xft-{kind}-{uuid.uuid4().hex[:DIGITS]}"
            self.path = place / (f"{output.name}.{name}" if output else name)
            self.path.mkdir(mode=0o777 if output else 0o700)
            self._lock = _opened(self.path)
            if self._lock is not None:
                with suppress(OSError):  # a file system without locks, where nothing is ever swept
                    lock(self._lock)
                if self.path.exists():  # otherwise another process swept it before it was locked
                    return
                os.close(self._lock)

    def remove(self) -> None:
        """Remove the directory with all its contents; a renamed one is kept."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def temporary_directory(kind: Kind, place: Path | None = None, *, output: Path | None = None) -> Iterator[Path]:
    """The path of a TemporaryDirectory that is removed at the end of the block."""
    directory = TemporaryDirectory(kind, place, output=output)
    try:
        yield directory.path
    finally:
        directory.remove()


def sweep(*places: Path) -> None:
    """Remove this user's temporary directories of dead processes from ``places`` and the default locations."""
    for place in {Path(tempfile.gettempdir()), SHOWN_TO_SANDBOX, *places}:
        with suppress(OSError):
            for path in [path for path in place.iterdir() if NAME.fullmatch(path.name)]:
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    descriptor = _opened(path)
    if descriptor is None:
        return
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and lock(descriptor, wait=False):  # otherwise a living process holds it
            shutil.rmtree(path, ignore_errors=True)
    except OSError:  # a file system without locks
        pass
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    """Open a directory; None if it is missing, a link, or not a directory."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
