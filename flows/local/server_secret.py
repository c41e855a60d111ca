"""The secret that the servers of one home, their worker, flows and the ``xft`` command share (``tasks/servers/gate.py``)."""

import fcntl
import os
import secrets
from pathlib import Path

FILE = "server-auth"
NAME = "xft"
BYTES = 32


def server_auth(home: Path) -> str:
    """name:password of the servers of ``home``, in a file that only its owner reads. Made anew when others could read it."""
    (home / "locks").mkdir(parents=True, exist_ok=True)
    path = home / FILE
    with (home / "locks" / f"{FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and not path.stat().st_mode & 0o077 and (known := path.read_text(encoding="ascii").strip()):
            return known
        made = f"{NAME}:{secrets.token_urlsafe(BYTES)}"
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(made + "\n")
        new.replace(path)
        return made
