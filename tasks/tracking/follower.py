"""Follow a stage's curve file while the stage writes it, and pass on its points without losing any.

When a stage resumes, a shorter file may replace the file: points after its checkpoint are dropped and come again. The receiver
knows which points are new (see ``StageRun.log_points``).
"""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xft_core.store.curves import parse_point

Points = list[dict[str, Any]]
POLL_SECONDS = 2.0


class CurveFile:
    """Read the lines added to a JSONL file since the last call.

    A replaced file is detected by its content. An inode number is not enough, because file systems reuse it at once. Neither is
    the size, because the new file may already be longer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._digest = _digest(b"")  # of what is before the offset

    def new_points(self) -> Points:
        """Return complete lines not read yet; starts over if what was read is no longer what the file begins with."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        if _digest(text[:self._offset]) != self._digest:
            self._offset = 0
        end = text.rfind(b"\n") + 1  # the last line may be incomplete
        new = text[self._offset:end]
        self._offset, self._digest = end, _digest(text[:end])
        return list(filter(None, map(parse_point, new.splitlines())))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()


class Follower:
    """While its ``with`` block runs, a thread passes new points of ``path`` to ``deliver``.

    ``deliver`` returns whether it accepted them. Rejected points are offered again with the next ones.
    """

    def __init__(self, path: Path, deliver: Callable[[Points], bool], poll_seconds: float = POLL_SECONDS) -> None:
        self._file = CurveFile(path)
        self._deliver = deliver
        self._poll_seconds = poll_seconds
        self._pending: Points = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"curves of {path.parent.name}", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(self._poll_seconds):
            self._offer()
        self._offer()

    def _offer(self) -> None:
        self._pending += self._file.new_points()
        if self._pending and self._deliver(self._pending):
            self._pending = []
