"""Real small disks: one fills while an artifact is fetched from a real S3 server, one is full when a run begins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.object_store import artifacts
from tests.tasks.object_store.proxy import Proxy
from tests.tasks.object_store.test_artifacts import KEY, NEVER, make

ON_A_SMALL_DISK = """
import subprocess, sys, threading
from pathlib import Path
from tasks.object_store import artifacts as remote
from xft_core.store.artifacts import verify
from xft_core.errors import DiskFullError

disk, key = Path(sys.argv[1]), sys.argv[2]
output = disk / "artifacts" / "sft" / key[:32]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)], check=True)
try:
    remote.fetch(output, key, threading.Event())
    raise SystemExit("it was fetched")
except DiskFullError as error:
    assert "No space left while writing" in str(error) and not error.may_pass
assert not output.exists() and not list(output.parent.glob("*.xft-transfer-*")), "something is left behind"
subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
assert remote.fetch(output, key, threading.Event()) == verify(output)
"""

ON_A_FULL_DISK = """
import subprocess, sys
from pathlib import Path

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=True)
(disk / "rest").write_bytes(bytes(16384))
from tasks.execution import pipeline_run  # first: it sets how long Prefect's server may take to start
from prefect import flow
from xft_core.recipe.sections import Recipe
from xft_core.errors import DiskFullError

@flow(name="full")
def full():
    with pipeline_run.opened(Recipe()):
        pass

error = full(return_state=True).result(raise_on_failure=False)
assert isinstance(error, DiskFullError), error
assert f"No space left while writing to {str(disk / 'home')!r}" in str(error)
"""

pytestmark = pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0, reason="no user namespaces here")


@pytest.mark.slow
def test_a_download_is_a_message_and_goes_on_with_more_room(s3: Proxy, tmp_path: Path) -> None:
    artifacts.deliver(make(tmp_path / "first"), NEVER)  # 70 KB
    (tmp_path / "disk").mkdir()
    result = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path / "disk"), KEY],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_a_run_that_finds_its_disk_full_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "XFT_"))}
    environment |= {"XFT_HOME": str(tmp_path / "disk" / "home"), "PREFECT_HOME": str(tmp_path / "prefect"),
                    "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    result = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path / "disk")], env=environment,
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
