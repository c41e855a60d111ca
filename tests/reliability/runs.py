"""``xft run`` in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

from tests.flows.conftest import REPOSITORY

LONGEST_SECONDS = 3600  # for a tiny recipe, on a machine that is busy with other work


def start(home: Path, recipe: Path, **more: str) -> subprocess.Popen[str]:
    """Start the recipe, with all files in ``home``, and ``more`` in the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(recipe)], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
        env=environment | {"XFT_HOME": str(home), **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """Return the output of a successful run. The process is killed if the test ends otherwise."""
    try:
        output, _ = process.communicate(timeout=LONGEST_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "Traceback" not in output, output
    return output
