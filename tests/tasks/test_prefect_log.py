"""A run does not depend on its log: the process continues when nobody reads the log any more."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TALKATIVE = """
import sys
from pathlib import Path
from rich.console import Console
from tasks import prefect_log
prefect_log.install()
console = Console(file=sys.stderr)
console.print("ready")
sys.stdin.readline()
for number in range(100):
    console.print("line", number, "x" * 1000)
Path(sys.argv[1]).write_text("went on")
"""


def test_a_process_goes_on_when_who_read_its_log_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
            [sys.executable, "-c", TALKATIVE, str(tmp_path / "said")], cwd=REPOSITORY, stdin=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stdin is not None
        assert process.stderr.readline() == "ready\n"
        process.stderr.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.wait(60) == 0
    assert (tmp_path / "said").read_text() == "went on"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow", sorted(path.stem for path in (REPOSITORY / "flows").glob("*.py") if "@flow(" in path.read_text()))
def test_every_flow_says_its_mistakes_without_a_stack_trace(flow: str) -> None:
    code = ("import logging, sys, importlib; importlib.import_module(f'flows.{sys.argv[1]}'); "
            "print([type(item).__name__ for item in logging.getLogger('prefect.flow_runs').filters])")
    done = subprocess.run([sys.executable, "-c", code, flow], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "Readable" in done.stdout
