"""The real pipeline from the command line with an object store: a second machine (another home, another Prefect database)
reuses all stages, and credentials are written nowhere."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.conftest import REPOSITORY
from tests.tasks.object_store.proxy import ACCESS_KEY, SECRET_KEY, Proxy

pytestmark = pytest.mark.slow


def xft(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``xft`` on a machine with this home. Its output is saved in the home, so that tests can search it too."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"XFT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "DEBUG"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True,
        timeout=3600)
    home.mkdir(exist_ok=True)
    with (home / "said.log").open("a") as stream:
        stream.write(done.stdout + done.stderr)
    return done


def test_a_second_machine_reuses_everything_and_credentials_stay_secret(
    s3: Proxy, recipe_file: Callable[..., Path], tmp_path: Path,
) -> None:
    recipe = str(recipe_file())
    s3.fault = lambda request: "400 ExpiredToken"
    refused = xft(tmp_path / "refused", "run", recipe)
    assert refused.returncode == 1 and "ExpiredToken" in refused.stderr
    assert len(s3.requests) == 1  # no retry storm, and no work started
    assert not (tmp_path / "refused" / "artifacts").exists()

    s3.fault = None
    first = xft(tmp_path / "first", "run", recipe)
    assert first.returncode == 0, first.stderr
    second = xft(tmp_path / "second", "run", recipe)
    assert second.returncode == 0, second.stderr
    assert "done (12 of 12 stages reused)" in second.stdout
    whole = xft(tmp_path / "second", "store", "verify", "--s3")
    assert "12 of 12 artifacts are intact" in whole.stdout

    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET_KEY.encode() not in content and ACCESS_KEY.encode() not in content, path
