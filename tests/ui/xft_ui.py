"""``xft ui`` as ``make ui`` starts it, over its own home, and its running processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpx
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from flows.local.server_secret import server_auth
from tests.flows.conftest import REPOSITORY

READY = "Ctrl-C stops everything"
STOP_SECONDS = 60
Found = TypeVar("Found")


class XftUi:
    """Prefect, MLflow and the worker, started with ``start`` and ended with ``interrupt``."""

    def __init__(self, home: Path) -> None:
        self.home, self.began = home, time.time()
        self.prefect, self.mlflow = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home / "ui.log"

    def start(self) -> None:
        """Start it and wait until both pages and the worker are up."""
        self.launch()
        process = self.process
        assert process is not None
        wait_for(lambda: READY in self.output() or process.poll() is not None, 900, "xft ui did not get ready")
        assert process.poll() is None, self.output()

    def launch(self) -> None:
        """Start it without waiting."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        prefect, mlflow = (address.rpartition(":")[2] for address in (self.prefect, self.mlflow))
        command = self.command("--prefect-port", prefect, "--mlflow-port", mlflow)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", "ui", *arguments]

    def environment(self) -> dict[str, str]:
        """The environment from a user's shell and the Makefile."""
        names = [name for name in os.environ if name.startswith(("PREFECT_", "XFT_"))] + ["MLFLOW_TRACKING_URI"]
        kept = {name: value for name, value in os.environ.items() if name not in names}
        python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return kept | {
            "XFT_HOME": str(self.home), "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

    def shell(self) -> dict[str, str]:
        """The environment of a shell in which a user runs ``prefect`` by hand, see docs/how-to/web-pages.md."""
        return self.environment() | {
            "PREFECT_API_URL": f"{self.prefect}/api", "PREFECT_API_AUTH_STRING": ":".join(self.secret)}

    @property
    def secret(self) -> tuple[str, str]:
        """Name and password of both servers."""
        name, _, password = server_auth(self.home).partition(":")
        return name, password

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end(self, number: signal.Signals = signal.SIGINT, times: int = 1) -> int:
        """Send Ctrl-C or another signal; returns the exit status."""
        assert self.process is not None
        for _ in range(times):
            self.process.send_signal(number)
            time.sleep(0.3)
        return self.process.wait(STOP_SECONDS)

    def close(self) -> None:
        """Clean up everything, whatever a test did."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def processes(self, word: str = "") -> list[int]:
        """Return the ids of all processes with this home in their environment and ``word`` in their command line. Older ones,
        such as the shell or the make that exported XFT_HOME, are not ours."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes()
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"XFT_HOME={self.home}".encode() in environment and word.encode() in command:
                with suppress(psutil.NoSuchProcess):
                    if psutil.Process(int(path.name)).create_time() >= self.began:
                        found.append(int(path.name))
        return found

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call Prefect's API as its pages do; retries if the API asks for that (SQLite is busy)."""
        for wait in (1, 2, 4, 8, 0):
            answer = httpx.post(f"{self.prefect}/api{path}", json=body or {}, auth=self.secret, timeout=30)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(wait)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployment_id(self, name: str) -> str:
        return str(next(item["id"] for item in self.api("/deployments/filter") if item["name"] == name))

    def runs(self, deployment: str | None = None) -> list[dict[str, Any]]:
        """Return the flow runs, the first one started first."""
        body: dict[str, Any] = {"sort": "EXPECTED_START_TIME_ASC"}
        if deployment:
            body["deployments"] = {"name": {"any_": [deployment]}}
        return list(self.api("/flow_runs/filter", body))

    def run(self, run_id: str) -> dict[str, Any]:
        return next(item for item in self.api("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}}))

    def run_deployment(self, name: str, **parameters: Any) -> str:
        """Start a run of a deployment; returns its id."""
        path = f"/deployments/{self.deployment_id(name)}/create_flow_run"
        return str(self.api(path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"])

    def wait_for_state(self, run_id: str, state: str, seconds: float = 900) -> dict[str, Any]:
        """Wait until the run has ended, which must be in ``state``; returns the run."""
        over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_for(lambda: self.run(run_id)["state_type"] in over, seconds, f"run {run_id} did not end")
        run = self.run(run_id)
        assert run["state_type"] == state, (run["state"], self.log_lines(run_id)[-20:])
        return run

    def task_states(self, run_id: str) -> dict[str, str]:
        """Return the state of every task run by name."""
        found = self.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return {item["name"]: item["state_name"] for item in found}

    def log_lines(self, run_id: str) -> list[str]:
        found: list[str] = []
        while True:
            page = self.api("/logs/filter", {
                "logs": {"flow_run_id": {"any_": [run_id]}}, "offset": len(found), "limit": 200, "sort": "TIMESTAMP_ASC"})
            found += [item["message"] for item in page]
            if len(page) < 200:
                return found

    def link(self, run_id: str, key: str) -> str:
        """Return the address of the link artifact that a run published under ``key``, as seen in a browser on Prefect's
        pages."""
        return urljoin(self.prefect, self.artifact(run_id, key).partition("](")[2].rstrip(")"))

    def artifact(self, run_id: str, key: str) -> str:
        """Return the content of the artifact that a run published under ``key``."""
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}, "sort": "CREATED_DESC"}
        return str(self.api("/artifacts/filter", body)[0]["data"])

    def wait_for_checkpoints(self) -> Path:
        """Return the directory of SFT's checkpoints once it has the first one of a running training."""
        found = "artifacts/sft/*.partial/checkpoints/checkpoint-*"
        checkpoint: Any = wait_for(lambda: next(self.home.glob(found), None), 600, "no checkpoint was written")
        return Path(checkpoint).parent

    def tracking(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.mlflow.replace("//", "//{}:{}@".format(*self.secret)))

    def tracking_run(self, run_id: str) -> Run:
        """Return the MLflow run of a pipeline run."""
        client = self.tracking()
        experiments = [item.experiment_id for item in client.search_experiments()]
        found = client.search_runs(experiments, f"tags.`prefect.flow_run_id` = '{run_id}'")
        return next(item for item in found if "mlflow.parentRunId" not in item.data.tags)


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(found: Callable[[], Found], seconds: float, complaint: str | Callable[[], str]) -> Found:
    """Wait until ``found`` returns a true value, and return it. Raises AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            said = complaint if isinstance(complaint, str) else complaint()
            raise AssertionError(f"{said} within {seconds:.0f} s")
        time.sleep(0.2)
    return value
