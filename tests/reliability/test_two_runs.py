"""Several runs of one recipe at once: all are correct, one machine does the work once, and a killed owner loses it at once."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.flows.conftest import RECIPE, REPOSITORY
from tests.reliability import checks
from tests.reliability.runs import finished, start
from tests.tasks.object_store.proxy import Proxy
from tests.ui.xft_ui import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"sft": RECIPE["sft"] | {"max_steps": 60, "epochs": 60}}))  # type: ignore
    return path


def test_three_at_once_on_one_machine_and_one_of_them_killed(tmp_path: Path, recipe: Path) -> None:
    home = tmp_path / "home"
    runs = [start(home, recipe) for _ in range(3)]
    try:
        wait_for(lambda: list(home.glob("artifacts/sft/*.partial/checkpoints/checkpoint-*/whole")), 3600, "nothing was trained")
        ancestors = list(ancestors_of(owner_of_work(home)))
        killed, = (run for run in runs if run.pid in ancestors)
        killed.kill()
        for run in runs:
            if run is not killed:
                finished(run)
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    for path in checks.artifacts(home):
        checks.verify(path)
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    found = client.search_runs([item.experiment_id for item in client.search_experiments()], max_results=1000)
    makers = defaultdict(set)
    for run in found:
        tags = run.data.tags
        if tags["xft.kind"] == "stage" and tags.get("xft.reused") == "false":
            makers[tags["xft.key"]].add(tags["prefect.flow_run_id"])
    assert len(makers) >= len(checks.artifacts(home)) - 2  # the killed run may not have recorded its last artifacts
    assert {len(flow_runs) for flow_runs in makers.values()} == {1}  # no artifact was built twice
    assert sorted(run.info.status for run in found if run.data.tags["xft.kind"] == "pipeline")[:2] == ["FINISHED", "FINISHED"]
    for run in found:
        if run.data.tags.get("xft.stage") == "sft" and run.info.status == "FINISHED":
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
            assert steps == list(range(1, 61))


def owner_of_work(home: Path) -> int:
    """Return the ID of the process that holds the lock of the one active SFT; other processes may wait for it."""
    lock = next(home.glob("artifacts/sft/*.partial")).with_suffix(".lock")
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(lock.stat().st_ino):
            return int(words[4])
    raise AssertionError("nobody works")


def ancestors_of(pid: int) -> Iterator[int]:
    """Yield the parent (for a stage: its run's fork server), the parent's parent (the run), and so on."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def test_two_machines_on_one_bucket(s3: Proxy, tmp_path: Path, recipe: Path) -> None:
    homes = [tmp_path / name for name in ("first", "second")]
    runs = [start(home, recipe, MLFLOW_TRACKING_URI=f"sqlite:///{home}/mlflow.db") for home in homes]
    try:
        for run in runs:
            finished(run)
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    first, second = map(checks.digests, homes)
    assert {place: digest for place, digest in first.items() if not place.startswith("report/")} == {
        place: digest for place, digest in second.items() if not place.startswith("report/")}
    output = finished(start(tmp_path / "third", recipe))
    assert "done (12 of 12 stages reused)" in output
    verified = subprocess.run(
        [sys.executable, "-m", "flows.cli", "store", "verify", "--s3"], cwd=REPOSITORY, capture_output=True, text=True,
        env=os.environ | {"XFT_HOME": str(tmp_path / "third")})
    assert verified.returncode == 0, verified.stdout
