"""Files written and locked safely: locks, relative paths that stay below their directory, full disks."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from xft_core.errors import ArtifactError, DiskFullError


def relative_path(path: str) -> str:
    """``path`` if it is a plain relative path, so that a file stays below its directory and an object below its prefix.

    Raises ValueError otherwise: absolute, ``..``, empty parts, backslashes, control characters, over 900 bytes.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or len(path.encode("utf-8", "replace")) > 900 or not all(
            character.isprintable() and character != "\\" for character in path):
        raise ValueError(f"{path[:100]!r} is no plain relative path")
    return path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the only right to work on ``directory``. Waits for another owner; a killed owner loses it at once."""
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        stream = directory.with_name(directory.name + ".lock").open("a")  # not "w": a file of that name may be someone's
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or no name at all
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{str(directory)[:200]!r} cannot be written: {reason}. Choose another output.") from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_full_is_an_error(where: Path) -> Iterator[None]:
    """Turn 'no space left', in whatever form a library raises it, into a DiskFullError that names the place."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _means_disk_full(error):
            raise
        raise DiskFullError(
            f"No space left while writing to {str(where)!r}. Nothing that was finished is lost: free some space and "
            "start the same command again, it goes on from the last checkpoint."
        ) from error


def _means_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "os error 28" in str(error)  # safetensors gives the system's text


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
