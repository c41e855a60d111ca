"""MLflow, the object store and Prefect's server unavailable while a run trains: real servers behind gates that are shut.

Training continues. Data for the servers waits on disk and is delivered afterwards, in order and exactly once.
"""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from mlflow import MlflowClient

from tests.flows.conftest import RECIPE, REPOSITORY
from tests.reliability import checks
from tests.reliability.gate import Gate
from tests.reliability.services import MLFLOW, PREFECT, Services
from tests.tasks.object_store.proxy import BUCKET, raw_client
from tests.ui.xft_ui import wait_for

pytestmark = pytest.mark.slow
AWAY_SECONDS = 40
STEPS = 400
INTERRUPT_SECONDS = 10


class Site:
    """Servers behind gates, and runs that know only the gates."""

    def __init__(self, directory: Path, s3: tuple[str, int]) -> None:
        self.store_gate = Gate(s3)
        self.services = Services(directory, self.store_gate.address)
        self.services.objects = raw_client(s3)
        self.services.start(PREFECT)
        self.services.start(MLFLOW)
        self.mlflow_gate, self.prefect_gate = (
            Gate((str(urlsplit(address).hostname), int(urlsplit(address).port or 0)))
            for address in (self.services.mlflow, self.services.api))
        self.services.wait_until_up(PREFECT)
        self.services.wait_until_up(MLFLOW)

    @property
    def gates(self) -> tuple[Gate, ...]:
        return self.store_gate, self.mlflow_gate, self.prefect_gate

    def run(self, home: Path, **more: str) -> subprocess.Popen[str]:
        """Start ``xft run`` of the recipe in ``home``."""
        environment = self.services.environment(
            XFT_HOME=str(home), XFT_STORE=f"s3://{BUCKET}/{home.name}", PREFECT_API_URL=f"{self.prefect_gate.address}/api",
            MLFLOW_TRACKING_URI=self.mlflow_gate.address, **more)
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", str(home / "recipe.yaml")], cwd=REPOSITORY, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def losses(self, name: str) -> dict[str, list[int]]:
        """Return the steps of the loss of every SFT run in the experiment, by the status of its parent."""
        client = MlflowClient(tracking_uri=self.services.mlflow)
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], "tags.`xft.stage` = 'sft'")
        return {client.get_run(run.data.tags["mlflow.parentRunId"]).info.status: [
            point.step for point in client.get_metric_history(run.info.run_id, "loss")] for run in found}


@pytest.fixture(scope="module")
def site(s3_server: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    raw_client(s3_server).create_bucket(Bucket=BUCKET)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    made = Site(tmp_path_factory.mktemp("servers"), s3_server)
    yield made
    made.services.close()


def home_with_recipe(tmp_path: Path, name: str, steps: int = STEPS) -> Path:
    home = tmp_path / name
    home.mkdir()
    recipe = RECIPE | {"experiment": name, "sft": RECIPE["sft"] | {  # type: ignore[operator]
        "max_steps": steps, "epochs": steps, "checkpoint_steps": 5}}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return home


def last_checkpoint(home: Path) -> int:
    found = home.glob("artifacts/sft/*.partial/checkpoints/checkpoint-*/whole")
    return max((int(path.parent.name.rpartition("-")[2]) for path in found), default=0)


def test_training_goes_on_and_all_is_there_afterwards(site: Site, tmp_path: Path) -> None:
    home = home_with_recipe(tmp_path, "away")
    process = site.run(home)
    try:
        wait_for(lambda: last_checkpoint(home) or process.poll() is not None, 3600, "no checkpoint was written")
        for gate in site.gates:
            gate.shut()
        before = last_checkpoint(home)
        time.sleep(AWAY_SECONDS)
        during = last_checkpoint(home) or STEPS
        for gate in site.gates:
            gate.open()
        output, _ = process.communicate(timeout=3600)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "Traceback" not in output, output
    assert during > before
    assert "MLflow does not answer. The run continues" in output
    assert site.losses("away") == {"FINISHED": list(range(1, STEPS + 1))}
    checks.store_is_whole(home, site.services, f"s3://{BUCKET}/away")
    there = site.services.objects.list_objects_v2(Bucket=BUCKET, Prefix="away/artifacts/")["Contents"]
    assert sum(item["Key"].endswith("/manifest.json") for item in there) == len(checks.artifacts(home))


@pytest.mark.parametrize("when", ["training", "publishing"])
def test_an_interrupt_ends_a_run_whose_servers_are_away(site: Site, tmp_path: Path, when: str) -> None:
    home = home_with_recipe(tmp_path, f"interrupted-{when}", STEPS if when == "training" else 6)
    process = site.run(home)
    assert process.stdout is not None
    said: deque[str] = deque()
    reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
    reader.start()
    gates = site.gates if when == "training" else (site.mlflow_gate,)
    begun = "*.partial/checkpoints/checkpoint-*" if when == "training" else "*"
    try:
        wait_for(lambda: [*home.glob(f"artifacts/sft/{begun}")] or process.poll() is not None, 3600, "nothing was trained")
        for gate in gates:
            gate.shut()
        if when == "training":
            time.sleep(5)  # requests are being retried by now
        else:
            wait_for(lambda: "Retrying for up to" in "".join([*said]), 3600, "nothing was waited for")
        process.send_signal(signal.SIGINT)
        assert process.wait(INTERRUPT_SECONDS) == 130
    finally:
        process.kill()
        for gate in gates:
            gate.open()
    reader.join(30)
    assert "The same command continues from the finished work" in "".join(said)
    again = site.run(home)
    output, _ = again.communicate(timeout=3600)
    assert again.returncode == 0, output


@pytest.mark.parametrize("which", ["mlflow", "store"])
def test_what_stays_away_costs_a_message_and_the_same_command_delivers(site: Site, tmp_path: Path, which: str) -> None:
    home = home_with_recipe(tmp_path, f"gone-{which}")
    gate = site.mlflow_gate if which == "mlflow" else site.store_gate
    process = site.run(home, XFT_DELIVERY_SECONDS="3")
    try:
        wait_for(lambda: last_checkpoint(home) or process.poll() is not None, 3600, "no checkpoint was written")
        gate.shut()
        output, _ = process.communicate(timeout=3600)
    finally:
        process.kill()
        gate.open()
    assert process.returncode == 1, output
    assert "Traceback" not in output, output
    error = output.rpartition("error: ")[2]
    assert ("MLflow at" if which == "mlflow" else f"s3://{BUCKET}/gone-store") in error and "the same command" in error
    assert (home / "artifacts" / "sft").is_dir() and not list((home / "artifacts" / "sft").glob("*.partial"))
    again = site.run(home)
    output, _ = again.communicate(timeout=3600)
    assert again.returncode == 0, output
    assert site.losses(f"gone-{which}")["FINISHED"] == list(range(1, STEPS + 1))
    assert set(site.losses(f"gone-{which}")) == {"FINISHED", "FAILED"}
    if which == "mlflow":  # only the records were delayed
        assert "done (12 of 12 stages reused)" in output
