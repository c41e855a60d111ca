"""Write and lock files safely: locks, atomic writes, relative paths that stay below their directory, full disks."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from xft_core.errors import ArtifactError, DiskFullError


def relative_path(path: str) -> str:
    """Return ``path`` if it is a plain relative path, so that a file stays below its directory, an object below its prefix.

    Raises ValueError otherwise: absolute, ``..``, empty parts, backslashes, control characters, over 900 bytes.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or len(path.encode("utf-8", "replace")) > 900 or not all(
            character.isprintable() and character != "\\" for character in path):
        raise ValueError(f"{path[:100]!r} is not a plain relative path")
    return path


def lock(file: IO[str] | int, *, wait: bool = True, shared: bool = False) -> bool:
    """Lock an open file or directory until it is closed. Returns False if ``wait`` is false and another process holds it.

    The kernel releases the lock when its holder dies for any reason. Raises OSError on a file system without locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def file_lock(path: Path, *, wait: bool = True, shared: bool = False, create: bool = True) -> Iterator[IO[str] | None]:
    """Hold the lock of the file ``path``. Yields the open file, or None if ``wait`` is false and another process holds it.

    This never truncates the file, because its content belongs to the holder of the lock. Raises FileNotFoundError if
    ``create`` is false and the file does not exist.
    """
    mode = "a+" if create else "r" if shared else "r+"
    while True:
        with path.open(mode, encoding="utf-8") as stream:
            if not lock(stream, wait=wait, shared=shared):
                yield None
                return
            if _is_at(path, stream):
                yield stream
                return


def _is_at(path: Path, stream: IO[str]) -> bool:
    """Whether ``stream`` is the file at ``path``: the last owner may have removed it before this process got the lock."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the exclusive right to work on ``directory``: the lock of ``<directory>.lock``. Yields whether it is held.

    Waits for another owner unless ``wait`` is false; a killed owner loses it immediately. Raises ArtifactError if the lock
    file cannot be opened.
    """
    directory = directory.absolute()
    with ExitStack() as held:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            stream = held.enter_context(file_lock(directory.with_name(directory.name + ".lock"), wait=wait))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or no name at all
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArtifactError(f"{str(directory)[:200]!r} cannot be written: {reason}. Choose another output.") from None
        yield stream is not None


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Replace the file ``path`` by ``content`` atomically: a reader sees the old or the new file, even after a kill.

    The content is on disk when this returns. Only one writer at a time is allowed, because the temporary file is always
    ``<name>.tmp``. A kill may leave this file behind, and the next write replaces it. ``mode``: permissions of the new file,
    minus the umask. Raises OSError.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # it may have other permissions
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def disk_full_is_an_error(where: Path) -> Iterator[None]:
    """Turn 'no space left', in any form that libraries raise it, into a DiskFullError that names the location."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _means_disk_full(error):
            raise
        raise DiskFullError(
            f"No space left while writing to {str(where)!r}. No finished work is lost. Free some space and "
            "start the same command again to continue from the last checkpoint."
        ) from error


def _means_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "os error 28" in str(error)  # safetensors passes on the system's text


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
