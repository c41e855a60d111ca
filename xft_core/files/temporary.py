"""Temporary directories that do not stay: each is locked by the process that made it, for as long as that process lives.

A process that is killed cannot remove its directories. Its locks are free then, and ``sweep``, at the start of the next
command, removes what nobody holds. The lock (flock) tells the living from the dead also across containers that share a
disk, where process ids do not.
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

# What we make, and by what name: so nothing else is removed that is called xft-something.
Kind = Literal["cache", "mlflow", "page", "report", "stage", "transfer", "unsafe", "verify", "work"]
DIGITS = 12
NAME = re.compile(rf"(?:.+\.)?xft-(?:{'|'.join(get_args(Kind))})-[0-9a-f]{{{DIGITS}}}")
# Not /tmp: programs in the sandbox have a /tmp of their own, so what they are shown is kept here.
SHOWN_TO_SANDBOX = Path("/var/tmp")


class TemporaryDirectory:
    """An empty directory ``xft-<kind>-...``, for this user only, that is there until ``remove``.

    place: where to make it (default: the system's temporary directory).
    output: make it beside this path instead, to be renamed to it; everyone may read it who may read what is made there.
    """

    def __init__(self, kind: Kind, place: Path | None = None, *, output: Path | None = None) -> None:
        place = output.parent if output else place or Path(tempfile.gettempdir())
        while True:
            name = f"xft-{kind}-{uuid.uuid4().hex[:DIGITS]}"
            self.path = place / (f"{output.name}.{name}" if output else name)
            self.path.mkdir(mode=0o777 if output else 0o700)
            self._lock = _opened(self.path)
            if self._lock is not None:
                with suppress(OSError):  # a file system without locks: nothing there is ever swept
                    lock(self._lock)
                if self.path.exists():  # else swept by another process before it was locked
                    return
                os.close(self._lock)

    def remove(self) -> None:
        """Remove the directory with all that is in it; one that was renamed stays."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def temporary_directory(kind: Kind, place: Path | None = None, *, output: Path | None = None) -> Iterator[Path]:
    """The path of a TemporaryDirectory that is gone when the block ends."""
    directory = TemporaryDirectory(kind, place, output=output)
    try:
        yield directory.path
    finally:
        directory.remove()


def sweep(*places: Path) -> None:
    """Remove this user's temporary directories whose process is dead, from ``places`` and where they are by default."""
    for place in {Path(tempfile.gettempdir()), SHOWN_TO_SANDBOX, *places}:
        with suppress(OSError):
            for path in [path for path in place.iterdir() if NAME.fullmatch(path.name)]:
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    descriptor = _opened(path)
    if descriptor is None:
        return
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and lock(descriptor, wait=False):  # else a living process holds it
            shutil.rmtree(path, ignore_errors=True)
    except OSError:  # a file system without locks
        pass
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    """A directory, opened; None if it is gone, a link, or something else."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
