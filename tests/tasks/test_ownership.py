import subprocess
import sys
from pathlib import Path

from tasks.ownership import close_abandoned, owned

REPOSITORY = Path(__file__).parents[2]


def test_only_runs_of_dead_processes_are_closed(tmp_path: Path) -> None:
    code = ("import os; from pathlib import Path; from tasks.ownership import owned\n"
            f"with owned(Path({str(tmp_path)!r}), 'dead'): os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    closed: list[str] = []
    with owned(tmp_path, "alive"):
        close_abandoned(tmp_path, closed.append)
        close_abandoned(tmp_path, closed.append)
    assert closed == ["dead"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_closed_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "unknown").touch()

    def fail(name: str) -> None:
        raise ValueError(name)

    close_abandoned(tmp_path, fail)
    assert list(tmp_path.iterdir()) == []  # let go: it may be another server's, and would fail at every start
