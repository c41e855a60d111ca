"""Follow a stage's curve file while the stage writes it, and pass on its points without losing any.

When a stage resumes, a shorter file may replace the file: points after its checkpoint are dropped and come again. The receiver
knows which points are new (see ``StageRun.log_points``).
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xft_core.store.curves import parse_point

Points = list[dict[str, Any]]
POLL_SECONDS = 2.0


class CurveFile:
    """Read the lines added to a JSONL file since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode: int | None = None

    def new_points(self) -> Points:
        """Return complete lines not read yet; starts over if the file was replaced or became shorter."""
        try:
            with self.path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                stream.seek(self._offset)
                text = stream.read()
        except FileNotFoundError:
            return []
        whole = text[:text.rfind(b"\n") + 1]  # the last line may be incomplete
        self._offset += len(whole)
        return list(filter(None, map(parse_point, whole.splitlines())))


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
