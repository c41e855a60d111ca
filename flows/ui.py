"""``xft ui``: Prefect's and MLflow's servers and a worker on this machine, over the files of XFT_HOME, until Ctrl-C."""

import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

from flows.processes import ignore_interrupts, processes
from flows.provision import pool_name, provision
from flows.worker import cancel_runs, close_abandoned_runs, worker_command, worker_environment
from tasks.settings import Settings, settings
from xft_core.errors import XftError

HOST = "127.0.0.1"
ADDRESS_FILE = "prefect-api"


def serve(prefect_port: int, mlflow_port: int) -> int:
    """Start both servers, apply prefect.yaml, start a worker for its pool, wait. Returns the exit status.

    Raises XftError when a port is taken, a deployment is refused, or one of the processes ends.
    """
    current = settings()
    current.home.mkdir(parents=True, exist_ok=True)
    for name, port in (("Prefect", prefect_port), ("MLflow", mlflow_port)):
        _check_free(name, port)
    api, mlflow_ui = f"http://{HOST}:{prefect_port}/api", f"http://{HOST}:{mlflow_port}"
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_SERVER_UI_API_URL": api}  # otherwise the pages ask port 4200, whatever the server's own is
    environment.pop("PREFECT_API_URL", None)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        with processes(current.home / "logs") as running:
            print("Starting Prefect and MLflow ...", flush=True)
            running.start("Prefect", prefect_command(prefect_port), environment)
            running.start("MLflow", mlflow_command(current, mlflow_port), environment)
            running.wait_until_up("Prefect", f"{api}/health")
            running.wait_until_up("MLflow", f"{mlflow_ui}/health")
            (current.home / ADDRESS_FILE).write_text(api, encoding="utf-8")
            print(f"  Prefect  http://{HOST}:{prefect_port}\n  MLflow   {mlflow_ui}", flush=True)
            os.environ["PREFECT_API_URL"] = api  # before Prefect is imported, by what follows
            provision(current.home)
            pool = pool_name()
            close_abandoned_runs(pool)
            running.start("Worker", worker_command(pool), worker_environment(current, api, mlflow_ui))
            print(f"  Worker   of pool {pool!r}; start runs in Prefect under Deployments (schedules are paused)\n"
                  f"Data: {current.home}. Ctrl-C stops all; a run that it cancels goes on when started again.", flush=True)
            try:
                running.watch()
            except KeyboardInterrupt:
                print("\nStopping ...", flush=True)
                ignore_interrupts()
                cancel_runs(pool)
                raise
    except KeyboardInterrupt:
        return 0
    finally:
        (current.home / ADDRESS_FILE).unlink(missing_ok=True)
    return 0


def running_api(home: Path) -> str | None:
    """Address of the Prefect API that ``xft ui`` runs for this home, None when there is none."""
    try:
        address = (home / ADDRESS_FILE).read_text(encoding="utf-8").strip()
        with urllib.request.urlopen(f"{address}/health", timeout=2):
            return address
    except (OSError, ValueError):
        return None


def prefect_command(port: int) -> list[str]:
    """Prefect's server over the database in XFT_HOME."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]


def mlflow_command(current: Settings, port: int) -> list[str]:
    """MLflow's server over the database that runs write to."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", current.tracking_uri, "--artifacts-destination", str(current.mlflow_artifacts)]


def _check_free(name: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise XftError(
                f"Port {port} for {name} is taken. Choose another: xft ui --{name.lower()}-port NUMBER.") from None


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
