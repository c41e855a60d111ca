"""Prefect's server looks for migrations again whenever the database or Prefect has changed."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flows.local import prefect_tables


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in prefect_tables.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('a3b9c7d2e5f1')")
    return tmp_path


def older_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(home / "prefect.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'f416ea180ae1'")


def other_prefect(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_tables, "version", lambda _: "99.0")


def no_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "prefect.db").unlink()


def spoiled_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "prefect.db").write_bytes(b"no database")


def database_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prefect_tables.ELSEWHERE[1], "postgresql+asyncpg://server/prefect")


@pytest.mark.parametrize("change", [older_database, other_prefect, no_database, spoiled_database, database_elsewhere])
def test_tables_are_current_until_something_changes(
    home: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    assert not prefect_tables.are_current(home)
    prefect_tables.note(home)
    assert prefect_tables.are_current(home)
    change(home, monkeypatch)
    assert not prefect_tables.are_current(home)
