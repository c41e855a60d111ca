"""``xft ui``: Prefect's and MLflow's servers on this machine, over the databases of XFT_HOME, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.settings import Settings, settings
from xft_core.errors import XftError

HOST = "127.0.0.1"
START_SECONDS = 180
GRACE_SECONDS = 10
ADDRESS_FILE = "prefect-api"


def serve(prefect_port: int, mlflow_port: int) -> int:
    """Start both servers, print their addresses, wait. Raises XftError when a port is taken or a server ends."""
    home = settings().home
    home.mkdir(parents=True, exist_ok=True)
    for name, port in (("Prefect", prefect_port), ("MLflow", mlflow_port)):
        _check_free(name, port)
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    commands = {
        "prefect": [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)],
        "mlflow": mlflow_command(settings(), mlflow_port),
    }
    health = {
        "prefect": f"http://{HOST}:{prefect_port}/api/health", "mlflow": f"http://{HOST}:{mlflow_port}/health"}
    signal.signal(signal.SIGTERM, _as_interrupt)
    api_url = f"http://{HOST}:{prefect_port}/api"
    with _running(commands, logs, api_url) as processes:
        try:
            print("Starting Prefect and MLflow ...", flush=True)
            for name, address in health.items():
                _wait_until_up(name, address, processes[name], logs)
            (home / ADDRESS_FILE).write_text(api_url, encoding="utf-8")
            print(f"  Prefect  http://{HOST}:{prefect_port}\n  MLflow   http://{HOST}:{mlflow_port}\n"
                  f"Data: {home}. Ctrl-C stops both.", flush=True)
            while True:
                for name, process in processes.items():
                    if process.poll() is not None:
                        raise XftError(f"{name}'s server ended by itself; see {str(logs / f'{name}.log')!r}.")
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("\nStopping ...", flush=True)
            return 0
        finally:
            (home / ADDRESS_FILE).unlink(missing_ok=True)


def running_api(home: Path) -> str | None:
    """Address of the Prefect API that ``xft ui`` runs for this home, None when there is none."""
    try:
        address = (home / ADDRESS_FILE).read_text(encoding="utf-8").strip()
        with urllib.request.urlopen(f"{address}/health", timeout=2):
            return address
    except (OSError, ValueError):
        return None


def mlflow_command(current: Settings, port: int) -> list[str]:
    """MLflow's server over the database that runs write to."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", current.tracking_uri, "--artifacts-destination", str(current.mlflow_artifacts)]


@contextmanager
def _running(commands: dict[str, list[str]], logs: Path, api_url: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("PREFECT_API_URL", None)
    environment["PREFECT_SERVER_UI_API_URL"] = api_url  # what the pages in the browser ask; else always port 4200
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True)
        yield processes
    finally:
        for process in processes.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            _signal_group(process, signal.SIGKILL)
            process.wait()


def _wait_until_up(name: str, address: str, process: subprocess.Popen[bytes], logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise XftError(f"{name}'s server did not start; see {str(logs / f'{name}.log')!r}.")


def _check_free(name: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise XftError(
                f"Port {port} for {name} is taken. Choose another: xft ui --{name.lower()}-port NUMBER.") from None


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
