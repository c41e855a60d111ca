import subprocess
import sys
from pathlib import Path

import pytest

from tasks.execution.ownership import close_abandoned, owned

REPOSITORY = Path(__file__).parents[3]


def test_only_runs_of_dead_processes_are_closed(tmp_path: Path) -> None:
    code = ("import os; from pathlib import Path; from tasks.execution.ownership import owned\n"
            f"with owned(Path({str(tmp_path)!r}), 'dead'): os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    closed: list[tuple[str, str]] = []
    with owned(tmp_path, "alive"):
        close_abandoned(tmp_path, lambda *given: closed.append(given))
        close_abandoned(tmp_path, lambda *given: closed.append(given))
    assert closed == [("dead", "KILLED")]
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_told_or_closed_is_closed_another_time(tmp_path: Path) -> None:
    with owned(tmp_path, "run") as owner:
        owner.told = "FAILED"

    def fail(name: str, status: str) -> None:
        raise ConnectionError(name)

    with pytest.raises(ConnectionError):
        close_abandoned(tmp_path, fail)
    closed: list[tuple[str, str]] = []
    close_abandoned(tmp_path, lambda *given: closed.append(given))
    assert closed == [("run", "FAILED")]
    assert list(tmp_path.iterdir()) == []
