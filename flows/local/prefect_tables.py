"""Check whether Prefect's database has the tables of the installed Prefect, so that its server need not look for migrations.

By default, a server looks for migrations at every start, which takes a large part of the start. After a start that looked,
this module writes the database's revision and Prefect's version next to the database. While both stay the same, later starts
do not look.
"""

import os
import sqlite3
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

NOTE = "tables"
ELSEWHERE = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")


def are_current(prefect_home: Path) -> bool:
    """Return whether ``note`` recorded the database's present state; False if the environment names another database."""
    try:
        noted = (prefect_home / NOTE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return noted == _state(prefect_home)


def note(prefect_home: Path) -> None:
    """Record the tables of a running server that has looked for migrations."""
    if state := _state(prefect_home):
        with suppress(OSError):  # without a note the next start looks again
            (prefect_home / NOTE).write_text(state, encoding="utf-8")


def _state(prefect_home: Path) -> str | None:
    """Return Prefect's version and the database's revision; None if there is no such database or it cannot be read."""
    database = (prefect_home / "prefect.db").absolute()
    if any(os.environ.get(name) for name in ELSEWHERE) or not database.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error:
        return None
    return " ".join([version("prefect"), *sorted(revision for (revision,) in revisions)]) if revisions else None
