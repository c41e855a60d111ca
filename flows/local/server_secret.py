"""The secret shared by a home's servers, their worker, flows and the ``xft`` command (``tasks/servers/gate.py``)."""

import secrets
from pathlib import Path

from xft_core.files.disk import file_lock, write_whole

FILE = "server-auth"
NAME = "xft"
BYTES = 32


def server_auth(home: Path) -> str:
    """Return name:password of the servers of ``home``, kept in a file that only its owner can read. If others could read the
    file, it is replaced."""
    (home / "locks").mkdir(parents=True, exist_ok=True)
    path = home / FILE
    with file_lock(home / "locks" / f"{FILE}.lock"):
        if path.exists() and not path.stat().st_mode & 0o077 and (known := path.read_text(encoding="ascii").strip()):
            return known
        made = f"{NAME}:{secrets.token_urlsafe(BYTES)}"
        write_whole(path, made + "\n", mode=0o600)
        return made
