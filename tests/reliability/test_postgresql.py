"""Both servers on PostgreSQL with a password, a pool's worker, and runs, following docs/how-to/servers.md."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from mlflow import MlflowClient

from tests.flows.conftest import RECIPE, REPOSITORY
from tests.ui.xft_ui import free_ports, wait_for

pytestmark = pytest.mark.slow
PASSWORD = "s3cret"
UNPRIVILEGED = "postgres"  # PostgreSQL does not start as root
BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[int]:
    """Run Debian's PostgreSQL over its own directory, with the databases prefect and mlflow; yield its port."""
    if BINARIES is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    as_other = ["setpriv", f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups"] if os.geteuid() == 0 else []
    directory = Path("/var/tmp") / f"xft-postgresql-{os.getpid()}"  # other users cannot read tmp_path
    directory.mkdir(mode=0o700)
    if as_other:
        shutil.chown(directory, UNPRIVILEGED, UNPRIVILEGED)
    port, = free_ports(1)
    password = directory / "password"
    subprocess.run([*as_other, "sh", "-c", f"umask 077; echo {PASSWORD} > {password}"], check=True)
    subprocess.run(
        [*as_other, str(BINARIES / "initdb"), "-D", str(directory / "data"), "-U", "xft", "-A", "scram-sha-256", "--pwfile",
         str(password)], check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen(
        [*as_other, str(BINARIES / "postgres"), "-D", str(directory / "data"), "-p", str(port), "-k", str(directory), "-c",
         "listen_addresses=127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        where = ["-h", "127.0.0.1", "-p", str(port), "-U", "xft"]
        wait_for(lambda: not subprocess.run([str(BINARIES / "pg_isready"), *where], capture_output=True).returncode, 60,
                 "PostgreSQL did not start")
        for name in ("prefect", "mlflow"):
            subprocess.run([str(BINARIES / "createdb"), *where, name], check=True, env=environment)
        yield port
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(directory)


class Machine:
    """The processes that the how-to tells a user to start, with the environment it gives."""

    def __init__(self, directory: Path, database: int) -> None:
        self.directory = directory
        prefect, mlflow = free_ports(2)
        self.api, self.mlflow = f"http://127.0.0.1:{prefect}/api", f"http://127.0.0.1:{mlflow}"
        self.asked = httpx.Client(auth=("xft", PASSWORD), timeout=60)
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("PREFECT_", "XFT_", "MLFLOW_TRACKING"))}
        at = f"xft:{PASSWORD}@127.0.0.1:{database}"
        own = kept | {
            "PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(directory / "prefect"), "XFT_HOME": str(directory / "home"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self.server = own | {
            "XFT_SERVER_AUTH_STRING": f"xft:{PASSWORD}",
            "XFT_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{prefect},127.0.0.1:{mlflow}",
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{at}/prefect"}
        self.worker = own | {
            "PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": f"xft:{PASSWORD}", "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": "xft", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        self._running: list[subprocess.Popen[bytes]] = []
        self._prefect_port, self._mlflow_port, self._uri = str(prefect), str(mlflow), f"postgresql+psycopg2://{at}/mlflow"

    def start(self) -> None:
        python = [sys.executable, "-m"]
        self._begin("prefect", [*python, "flows.local.prefect_server", "--port", self._prefect_port], self.server)
        self._begin("mlflow", [
            *python, "tasks.servers.mlflow_server", "--port", self._mlflow_port, "--backend-store-uri", self._uri,
            "--artifacts-destination", str(self.directory / "files")], self.server)
        for address in (f"{self.api}/health", f"{self.mlflow}/health"):
            wait_for(lambda address=address: _answers(address), 900, f"{address} did not answer")  # type: ignore[misc]
        prefect = [*python, "prefect", "--no-prompt"]
        template = str(REPOSITORY / "deployments" / "work_pools" / "process.json")
        pool = ["work-pool", "create", "xft", "--type", "process", "--base-job-template", template]
        for command in (pool, ["deploy", "--all"]):
            subprocess.run([*prefect, *command], check=True, env=self.worker, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        self._begin("worker", [*prefect, "worker", "start", "--pool", "xft", "--type", "process"], self.worker)

    def _begin(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self._running.append(subprocess.Popen(
                command, env=environment, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def stop(self) -> None:
        for process in reversed(self._running):
            process.terminate()
            process.wait(60)

    def run(self, recipe: Path) -> str:
        """Run the pipeline through its deployment until it ends; return the ID of the run."""
        found = self.asked.get(f"{self.api}/deployments/name/pipeline/pipeline").json()
        made = self.asked.post(
            f"{self.api}/deployments/{found['id']}/create_flow_run",
            json={"parameters": {"recipe_file": str(recipe)}, "state": {"type": "SCHEDULED"}}).json()
        over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        address = f"{self.api}/flow_runs/{made['id']}"
        wait_for(lambda: self.asked.get(address).json()["state_type"] in over, 1800, "the run did not end")
        assert self.asked.get(address).json()["state_type"] == "COMPLETED"
        return str(made["id"])


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=30).status_code == 200
    except httpx.HTTPError:
        time.sleep(0.5)
        return False


@pytest.fixture
def machine(tmp_path: Path, postgresql: int) -> Iterator[Machine]:
    made = Machine(tmp_path, postgresql)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_runs_are_recorded_in_postgresql_and_strangers_turned_away(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    assert httpx.get(f"{machine.api}/flows/name/pipeline", timeout=60).status_code == 401
    assert httpx.get(f"{machine.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=60).status_code == 401
    first, again = machine.run(recipe), machine.run(recipe)
    tasks = machine.asked.post(
        f"{machine.api}/task_runs/filter", json={"flow_runs": {"id": {"any_": [again]}}}).json()
    assert {item["name"] for item in tasks if item["state_name"] != "Cached"} == {"publish"}
    for name, value in machine.worker.items():
        if name.startswith("MLFLOW_TRACKING"):
            monkeypatch.setenv(name, value)
    client = MlflowClient(tracking_uri=machine.mlflow)
    experiment = client.get_experiment_by_name("xft")
    assert experiment is not None
    for run_id in (first, again):
        run, = client.search_runs(
            [experiment.experiment_id], f"tags.`prefect.flow_run_id` = '{run_id}' and tags.`xft.kind` = 'pipeline'")
        assert run.info.status == "FINISHED" and run.data.metrics["merged/held_out_nll"] > 0
    assert client.get_model_version_by_alias("tiny", "champion").version == "1"
