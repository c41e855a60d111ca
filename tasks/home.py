"""XFT_HOME at the start of a command or run: create it for this user only, clean up after dead processes, check its place.

MLflow stores absolute addresses of files. After a home is moved or copied, they still point to the old home, and a run would
write there. Such a home is refused until ``xft relocate`` corrects its addresses.
"""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tasks.settings import Settings, make_private, settings
from xft_core.errors import XftError
from xft_core.files.temporary import NAME as TEMPORARY
from xft_core.files.temporary import sweep

# Names that XFT, Prefect and MLflow create there. A directory that holds any other name has other uses too.
OURS = frozenset({
    "artifacts", "locks", "logs", "mlflow-artifacts", "mlflow-ui", "mlflow.db", "mlflow.db-journal", "mlflow.db-shm",
    "mlflow.db-wal", "models", "prefect", "prefect-api", "prefect-storage", "prefect.yaml", "published", "runs",
    "server-auth"})
NOT_MINE = stat.S_IRWXG | stat.S_IRWXO
# Columns of MLflow's database that can hold addresses of files.
ADDRESSES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"), ("tags", "value"), ("trace_tags", "value"),
    ("model_version_tags", "value"), ("logged_model_tags", "tag_value"))


def open_home(say: Callable[[str], object]) -> Settings:
    """Check the settings, create and clean their home, and return them. ``say`` receives warnings for the user.

    Raises XftError for an invalid setting, or a home that cannot be created or used.
    """
    current = settings()
    try:
        make_private(current.home)
        if not os.access(current.home, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission to read and write it")
    except OSError as error:
        raise XftError(f"XFT_HOME is {str(current.home)!r}, which cannot be used: {error.strerror}. Name another directory."
                       ) from None
    _tighten(current.home, say)
    sweep_home(current)
    return current


def sweep_home(current: Settings) -> None:
    """Remove files that our killed processes left in the home and in the directories for temporary files."""
    with suppress(OSError):
        sweep(current.home, current.models, current.data, *current.artifacts.glob("*"))


def check_place(current: Settings) -> None:
    """Raise XftError if the MLflow database has addresses of another home, from which this one was moved or copied."""
    for old in old_places(current):
        how = "copied" if old.exists() else "moved"
        raise XftError(
            f"{str(current.home)!r} was {how} from {str(old)!r}: its MLflow addresses still lead to the old place, and a "
            "run would write there. `xft relocate` corrects them; it changes only this home.")


def old_places(current: Settings) -> list[Path]:
    """Return the other homes that MLflow's addresses of this home's files lead to."""
    database = _database(current)
    if database is None:
        return []
    found = []
    with suppress(sqlite3.Error), _read(database) as connection:
        for (location,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
            old = _home_of(location)
            if old is None or _same(old, current.home):
                continue
            runs = [run for (run,) in connection.execute(
                "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id) WHERE artifact_location = ?", (location,))]
            if _are_here(current, database, old, runs):
                found.append(old)
    return found


def relocate(current: Settings) -> int:
    """Make all addresses in MLflow's database lead to this home, in one transaction. Returns how many were changed.

    Raises XftError if the database cannot be written now.
    """
    database, changed = _database(current), 0
    if database is None:
        return 0
    try:
        with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for old in old_places(current):
                for before, after in ((old.as_uri(), current.home.as_uri()), (str(old), str(current.home))):
                    changed += sum(_replace(connection, *place, before, after) for place in ADDRESSES)
    except sqlite3.Error as error:
        raise XftError(f"{str(database)!r} cannot be changed: {error}. If a run or `xft ui` is active in this home, stop it "
                       "and try again.") from None
    return changed


def _tighten(home: Path, say: Callable[[str], object]) -> None:
    """Take all rights to the home from group and others. A home with the setgid bit is shared on purpose and stays open to its
    group. A home of another user, or with other files in it, stays as it is."""
    found = home.stat()
    mode = stat.S_IMODE(found.st_mode)
    shared = mode & stat.S_ISGID
    wanted = mode & ~(stat.S_IRWXO if shared else NOT_MINE)
    if found.st_uid != os.geteuid() or mode == wanted:
        return
    strangers = [path for path in home.iterdir() if path.name not in OURS and not TEMPORARY.fullmatch(path.name)]
    if mode & stat.S_ISVTX or strangers:
        say(f"Other users can read {str(home)!r}. XFT does not change its mode, because it holds other files too. Set XFT_HOME "
            "to a directory that only XFT uses, or change the mode of this one: chmod 700.")
        return
    home.chmod(wanted)
    say(f"{str(home)!r} was open to other users and is now closed to them (mode {wanted:o}). To share it with a group: "
        "chmod 2770.")


def _are_here(current: Settings, database: Path, old: Path, runs: list[str]) -> bool:
    """Return whether the files behind addresses in ``old`` are in this home, or nowhere. They are elsewhere if another home
    shares this database and holds the files of these ``runs``."""
    if any((current.mlflow_artifacts / run).exists() for run in runs):
        return True
    return database.parent == current.home and not any((old / "mlflow-artifacts" / run).exists() for run in runs)


def _replace(connection: sqlite3.Connection, table: str, column: str, before: str, after: str) -> int:
    # If the new home is inside the old one, addresses that are already right stay.
    right = f"{after}/" if after.startswith(f"{before}/") else None
    known = {row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')}
    if column not in known:  # another release of MLflow
        return 0
    done = connection.execute(
        f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
        f'WHERE ("{column}" = ? OR substr("{column}", 1, ?) = ?) AND NOT coalesce(substr("{column}", 1, ?) = ?, 0)',
        (after, len(before) + 1, before, len(before) + 1, f"{before}/", len(right or ""), right))
    return done.rowcount


def _home_of(location: str | None) -> Path | None:
    """Return the home of an experiment's artifact address, if it has the form of tasks/tracking; None for any other address."""
    parts = urlsplit(location or "")
    path = Path(unquote(parts.path))
    if parts.scheme not in ("", "file") or path.name != "mlflow-artifacts" or not path.is_absolute():
        return None
    return path.parent


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other


def _database(current: Settings) -> Path | None:
    """Return the file of MLflow's database; None unless the database is SQLite and the file exists."""
    scheme, _, rest = current.tracking_uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite":
        return None
    name, _, query = rest.partition("?")
    if "true" in parse_qs(query).get("uri", []):
        name = unquote(name.removeprefix("file:"))
    path = Path(name).absolute()
    return path if path.is_file() else None


@contextmanager
def _read(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
        yield connection
