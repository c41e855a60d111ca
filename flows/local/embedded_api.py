"""Prefect's API for one ``xft run``: a server process over the database in XFT_HOME that runs as long as the run.

Prefect can embed its API, but then it imports the entire server into the flow's process, which takes as long as starting the
server. A separate process starts at the same time as the flow's, and ends when its parent is killed.
"""

import atexit
import base64
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.local import prefect_tables
from flows.local.addresses import HOST, running_api, running_mlflow
from flows.local.prefect_server import serve, server_environment
from flows.local.server_secret import server_auth
from tasks import prefect_log
from tasks.settings import without_credentials
from xft_core.errors import XftError
from xft_core.files.disk import file_lock
from xft_core.runtime.process import die_with_parent

START_SECONDS = 600  # usually 5; an overloaded machine has needed more than 180
STOP_SECONDS = 5
KEEP_SECONDS = 1
FULL_BYTES = 2**20  # with less free space than this, the database cannot be created


def use_prefect_api(home: Path) -> "PrefectApi":
    """Point PREFECT_API_URL at an API: the one in the environment, that of a running ``xft ui``, or our own.
    The last two get their secret (PREFECT_API_AUTH_STRING) from the home.

    Call this before importing Prefect, and import it while the server starts. Our own server stops at exit, after Prefect has
    delivered its last events and log lines.
    """
    given, address = os.environ.get("PREFECT_API_URL", "").rstrip("/"), running_api(home)
    if given and given.replace("//localhost:", f"//{HOST}:") != address:
        return PrefectApi()
    os.environ["PREFECT_API_AUTH_STRING"] = server_auth(home)
    if not os.environ.get("XFT_MLFLOW_UI_URL"):  # this home's pages are, or will be, those of `xft ui`
        os.environ["XFT_ONE_ADDRESS"] = "1"
    if address:
        os.environ["PREFECT_API_URL"] = address
        if pages := running_mlflow(home):
            os.environ.setdefault("XFT_MLFLOW_UI_URL", pages)
        return PrefectApi()
    for name in ("logs", "locks"):
        (home / name).mkdir(parents=True, exist_ok=True)
    starting = ExitStack()
    starting.enter_context(file_lock(home / "locks" / "prefect-api-start.lock"))  # two at once would both create the tables
    server = _Server(_free_port(), home / "logs" / "prefect-api.log")
    atexit.register(server.stop)
    os.environ["PREFECT_API_URL"] = f"http://{HOST}:{server.port}/api"
    prefect_log.leave_out("View at ")  # this address has no web pages, and ends with the run
    return PrefectApi(server, starting)


class PrefectApi:
    """The API that PREFECT_API_URL names, with our own ``server`` behind it, if any."""

    def __init__(self, server: "_Server | None" = None, starting: ExitStack | None = None) -> None:
        """``starting``: contexts that stay open until the server is up."""
        self._server, self._starting = server, starting or ExitStack()
        self._error: XftError | None = None
        # The first request makes the server build its routes, which takes a third of a second. A thread sends it early.
        self._waiting = threading.Thread(target=self._wait, name="Start of Prefect's API", daemon=True)
        self._waiting.start()

    def wait(self) -> None:
        """Wait until the API answers. Raises XftError if the server does not start."""
        self._waiting.join()
        if self._error is not None:
            raise self._error

    @contextmanager
    def run_settings(self) -> Iterator[None]:
        """Apply Prefect's settings for a flow run. A server that ends with the run needs no heartbeats, whose thread would
        delay the flow's end by up to a second. Raises XftError if a server that we did not start cannot be used."""
        from httpx import HTTPStatusError
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        updates = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if self._server is not None else {}
        address = without_credentials(os.environ.get("PREFECT_API_URL", ""))
        try:
            with temporary_settings(updates=updates):
                yield
        except RuntimeError as error:
            if not str(error).startswith("Failed to reach API"):  # the message of Prefect's client
                raise
            raise XftError(
                f"Prefect's API at {address} does not answer. Start that server, or unset PREFECT_API_URL to run without one."
            ) from None
        except HTTPStatusError as error:
            if error.response.status_code not in (401, 403):
                raise
            raise XftError(
                f"Prefect's API at {address} refuses this user. Set PREFECT_API_AUTH_STRING to that server's value.") from None

    def _wait(self) -> None:
        try:
            with self._starting:
                if self._server is not None:
                    self._server.wait_until_up()
                    prefect_tables.note(Path(os.environ["PREFECT_HOME"]))
            if self._server is not None:
                self._server.keep()
        except XftError as error:
            self._error = error


class _Server:
    """The server process. Once it is up, it is restarted if it is killed, so that the run continues."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self._log = port, log
        log.unlink(missing_ok=True)
        self._ending = threading.Event()
        self._process = self._start()

    def wait_until_up(self) -> None:
        """Wait until the server answers. Raises XftError if it ends first or takes too long."""
        secret = base64.b64encode(os.environ["PREFECT_API_AUTH_STRING"].encode()).decode()
        first = urllib.request.Request(
            f"http://{HOST}:{self.port}/api/admin/version", headers={"Authorization": f"Basic {secret}"})
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(first, timeout=60):
                    return
            except OSError:
                time.sleep(0.05)
        full = " The disk is full." if shutil.disk_usage(self._log.parent).free < FULL_BYTES else ""
        late = "" if self._process.poll() is not None else f" within {START_SECONDS} s"
        raise XftError(f"Prefect's API did not start{late}; {str(self._log)!r} may say why.{full}")

    def keep(self) -> None:
        """From now on, restart the server whenever it ends by itself."""
        threading.Thread(target=self._keep, name="Prefect's API", daemon=True).start()

    def stop(self) -> None:
        """Stop the server for good."""
        self._ending.set()
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _keep(self) -> None:
        while not self._ending.wait(KEEP_SECONDS):
            if self._process.poll() is not None:
                self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.local.embedded_api", str(self.port)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=_environment())


def _environment() -> dict[str, str]:
    package_parent = str(Path(__file__).parents[2])
    return server_environment(os.environ, os.environ["PREFECT_API_AUTH_STRING"]) | {
        "PYTHONPATH": os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")])),
        # The values that Prefect sets for its own embedded server: no web pages, current settings.
        "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "0",  # a command-line run uses none; `xft ui` registers them
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": str(int(not prefect_tables.are_current(Path(os.environ["PREFECT_HOME"]))))}


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _main(port: int) -> None:
    die_with_parent()
    serve(HOST, port)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
