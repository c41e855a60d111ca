"""The tags from which MLflow's pages show a run's user, source and version."""

import getpass
import subprocess
from functools import lru_cache
from pathlib import Path

CODE = Path(__file__).parents[2]


def source_tags(command: str) -> dict[str, str]:
    """Return the tags of a run that ``command`` (``pipeline``, ``compare``) started; without the commit if the code is not a
    checkout."""
    commit = _commit()
    return {"mlflow.user": _user(), "mlflow.source.name": f"xft {command}", "mlflow.source.type": "LOCAL"} | (
        {"mlflow.source.git.commit": commit} if commit else {})


@lru_cache(maxsize=1)
def _commit() -> str | None:
    command = ["git", "-C", str(CODE), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    is_own = (CODE / ".git").exists()  # not a repository that the code was merely unpacked in
    return done.stdout.strip() if done.returncode == 0 and is_own else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "unknown"
