"""The services of a pipeline run, each a real process over data that stays: killed with SIGKILL and started again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.flows.conftest import REPOSITORY
from tests.tasks.object_store.proxy import ACCESS_KEY, SECRET_KEY
from tests.ui.xft_ui import free_ports

PREFECT, MLFLOW, WORKER = "Prefect server", "MLflow server", "worker"
START_SECONDS = 900


class Services:
    """Prefect's server, MLflow's server and a worker. An S3 server is given by its address."""

    def __init__(self, directory: Path, s3: str) -> None:
        prefect_port, mlflow_port = free_ports(2)
        self.directory = directory
        self.api, self.mlflow = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
        self._s3 = s3
        self.objects: Any = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands = {
            PREFECT: [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)],
            MLFLOW: [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers",
                     "1", "--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--artifacts-destination",
                     str(directory / "mlflow-files")],
            WORKER: [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", "xft", "--type", "process",
                     "--install-policy", "never"]}

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of every process here."""
        names = ("PREFECT_", "XFT_", "AWS_", "MLFLOW_TRACKING_URI")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        return kept | {
            "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "PREFECT_HOME": str(self.directory / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true", "XFT_S3_ENDPOINT_URL": self._s3, **more}

    def run_environment(self, home: Path, store: str) -> dict[str, str]:
        """Return a run's additional variables: its home, its store and the servers' addresses."""
        return {"XFT_HOME": str(home), "XFT_STORE": store, "PREFECT_API_URL": self.api, "MLFLOW_TRACKING_URI": self.mlflow}

    def start(self, name: str) -> None:
        """Start the service without waiting."""
        environment = self.environment()
        if name == WORKER:
            environment["PREFECT_API_URL"] = self.api
        with (self.directory / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._commands[name], env=environment, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True)

    def kill(self, name: str) -> None:
        """Send SIGKILL to the service and its helpers, but not to a worker's runs, which lead their own process groups."""
        process = self._running[name]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def is_up(self, name: str) -> bool:
        """Return whether the server answers; for a worker, whether its process exists."""
        if self._running[name].poll() is not None:
            return False
        if name == WORKER:
            return True
        try:
            with urllib.request.urlopen(f"{self.api if name == PREFECT else self.mlflow}/health", timeout=5):
                return True
        except OSError:
            return False

    def wait_until_up(self, name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up(name):
            assert time.monotonic() < deadline and self._running[name].poll() is None, f"{name} did not start"
            time.sleep(0.2)

    def close(self) -> None:
        for name in (WORKER, PREFECT, MLFLOW):
            if name in self._running and self._running[name].poll() is None:
                self.kill(name)
