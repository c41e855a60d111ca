"""``xft ui``: run Prefect's and MLflow's servers and a worker on this machine, over the files of XFT_HOME, until Ctrl-C."""

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from flows.local.addresses import ADDRESS_FILE, HOST, LOCK_FILE, MLFLOW_FILE, PUBLIC_FILE, running_api, shown_pages
from flows.local.prefect_server import MLFLOW_VARIABLE, server_environment
from flows.local.processes import ignore_interrupts, processes
from flows.local.provision import pool_name, provision
from flows.local.server_secret import FILE as AUTH_FILE
from flows.local.server_secret import server_auth
from flows.local.worker import cancel_runs, close_abandoned_runs, worker_command, worker_environment
from tasks.servers.gate import HOSTS_VARIABLE
from tasks.settings import BESIDE, Settings, is_loopback, settings
from xft_core.errors import XftError
from xft_core.files.disk import file_lock

ENDING_SECONDS = 90
EVERYWHERE = ("0.0.0.0", "")


def serve(prefect_port: int, mlflow_port: int, host: str = HOST, public: str | None = None) -> int:
    """Start both servers, apply prefect.yaml, start a worker for its pool, and wait. Returns the exit status.

    ``host``: the address that Prefect's server listens on, which also serves MLflow's pages. ``public``: the address for
    browsers on other machines, if it is not ``http://host:port``. MLflow's own port is on loopback only.

    Raises XftError if another ``xft ui`` serves the same home, a port is taken, a deployment is refused, or a process ends.
    """
    current, public = settings(), _public(host, prefect_port, public)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_interrupt)
    try:
        with _alone(current.home) as lock:
            for name, port, at in (("Prefect", prefect_port, host), ("MLflow", mlflow_port, HOST)):
                _check_free(name, port, at)
            _serve(current, prefect_port, mlflow_port, lock, host, public)
    except KeyboardInterrupt:
        pass
    return 0


def _serve(current: Settings, prefect_port: int, mlflow_port: int, lock: int, host: str, public: str | None) -> None:
    prefect_ui = f"http://{HOST if host in EVERYWHERE else host}:{prefect_port}"
    api, mlflow_ui = f"{prefect_ui}/api", f"http://{HOST}:{mlflow_port}"
    auth = server_auth(current.home)
    environment = server_environment(os.environ, auth) | {
        HOSTS_VARIABLE: ",".join(filter(None, [
            os.environ.get(HOSTS_VARIABLE), urlsplit(prefect_ui).netloc, urlsplit(public or "").netloc])),
        MLFLOW_VARIABLE: mlflow_ui, "XFT_PREFECT_UI_URL": public or prefect_ui}
    shown = shown_pages(public, f"{public}{BESIDE}") if public else shown_pages(prefect_ui, mlflow_ui)
    try:
        with processes(current.home / "logs", keep_open=(lock,)) as running:
            print("Starting Prefect and MLflow ...", flush=True)
            running.start("Prefect", prefect_command(prefect_port, host), environment)
            running.start("MLflow", mlflow_command(current, mlflow_port), environment)
            running.wait_until_up("Prefect", f"{api}/health")
            running.wait_until_up("MLflow", f"{mlflow_ui}/health")
            (current.home / ADDRESS_FILE).write_text(api, encoding="utf-8")
            (current.home / MLFLOW_FILE).write_text(mlflow_ui, encoding="utf-8")
            (current.home / PUBLIC_FILE).write_text(public or "", encoding="utf-8")
            for name, address in shown.items():
                print(f"  {name:8} {address}", flush=True)
            if public:
                print(f"  Browsers on other machines need the name and password in "
                      f"{str(current.home / AUTH_FILE)!r} (name:password).", flush=True)
            os.environ |= {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": auth}  # before Prefect is imported
            provision(current.home)
            pool = pool_name()
            close_abandoned_runs(pool)
            running.start("Worker", worker_command(pool), worker_environment(current, api, mlflow_ui))
            print(f"  Worker   of pool {pool!r}; start runs in Prefect under Deployments (schedules are paused)\n"
                  f"Data: {current.home}. Ctrl-C stops everything; runs that it cancels continue when restarted.", flush=True)
            try:
                running.watch()
            except KeyboardInterrupt:
                print("\nStopping ...", flush=True)
                ignore_interrupts()
                cancel_runs(pool)
                raise
    finally:
        for name in (ADDRESS_FILE, MLFLOW_FILE, PUBLIC_FILE):
            (current.home / name).unlink(missing_ok=True)


@contextmanager
def _alone(home: Path) -> Iterator[int]:
    """Hold the lock of ``home``, which names its holder. Waits until the remains of a killed ``xft ui`` have ended.

    Raises XftError if another ``xft ui`` serves this home.
    """
    (home / "locks").mkdir(parents=True, exist_ok=True)
    path = home / "locks" / LOCK_FILE
    deadline, said = time.monotonic() + ENDING_SECONDS, False
    while True:
        with file_lock(path, wait=False) as lock:
            if lock is not None:
                lock.truncate(0)
                print(os.getpid(), file=lock, flush=True)
                yield lock.fileno()
                return
        owner = path.read_text(encoding="utf-8").strip()
        if (owner.isdecimal() and Path(f"/proc/{owner}").exists()) or time.monotonic() > deadline:
            where = running_api(home)
            raise XftError(f"`xft ui` already runs over {str(home)!r}"
                           + (f": {where.removesuffix('/api')}." if where else f" (process {owner})."))
        if not said:
            print("Waiting for the processes of the last `xft ui` to end ...", flush=True)
        said = True
        time.sleep(0.2)



def prefect_command(port: int, host: str = HOST) -> list[str]:
    """Return the command of Prefect's server over the database in XFT_HOME."""
    return [sys.executable, "-P", "-m", "flows.local.prefect_server", "--host", host, "--port", str(port)]


def mlflow_command(current: Settings, port: int) -> list[str]:
    """Return the command of MLflow's server over the database that runs write to."""
    return [
        sys.executable, "-P", "-m", "tasks.servers.mlflow_server", "--host", HOST, "--port", str(port),
        "--backend-store-uri", current.tracking_uri, "--artifacts-destination", str(current.mlflow_artifacts)]


def _public(host: str, port: int, given: str | None) -> str | None:
    """Return the address of Prefect's pages for browsers on other machines; None if they cannot reach it. Raises XftError."""
    if given:
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.path not in ("", "/"):
            raise XftError(f"--public-address is {given!r}. Give http://host:port or https://host, without a path.")
        return f"{parts.scheme}://{parts.netloc.lower()}"
    if is_loopback(f"http://{host}"):
        return None
    if host in EVERYWHERE:
        raise XftError(
            f"--host {host} is every address of this machine. Give the one that browsers use: --public-address "
            f"http://NAME:{port}. Requests to any other name are refused.")
    return f"http://{host.lower()}:{port}"


def _check_free(name: str, port: int, host: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE and host != HOST:
                raise XftError(f"--host {host!r} is not an address of this machine: {error.strerror}.") from None
            raise XftError(
                f"Port {port} for {name} is taken. Choose another: xft ui --{name.lower()}-port NUMBER.") from None


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
