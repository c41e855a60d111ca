"""Prefect's server behind the gate (``tasks/servers/gate.py``).

    python -m flows.local.prefect_server --host HOST --port PORT

XFT_MLFLOW_BESIDE: address of an MLflow server behind the same gate, shown at /mlflow. Unset: none.
"""

import argparse
import faulthandler
import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.servers.beside import Beside
from tasks.servers.gate import AUTH_VARIABLE, from_environment, given_auth_string
from xft_core.errors import XftError
from xft_core.runtime.process import imports

if TYPE_CHECKING:
    from starlette.types import ASGIApp

MLFLOW_VARIABLE = "XFT_MLFLOW_BESIDE"
COLLECT_SECONDS = 2
ALL_EVERY = 30  # of so many collections, one is of all objects: it takes a tenth of a second, the others a few milliseconds
TURN_SECONDS = 5  # how often the event loop says that it turns
STALLED_SECONDS = 30  # without a turn; longer than a busy machine delays one


def serve(host: str, port: int) -> None:
    """Serve until SIGTERM. Raises XftError if the environment has no secret for the gate."""
    given_auth_string()  # before the slow imports
    with imports():
        import prefect
        import uvicorn
        from prefect.server.api.server import create_app
        from prefect.server.schemas.core import Artifact
        from prefect.server.utilities.schemas.bases import TimeSeriesBaseModel
        from prefect.settings import get_current_settings
        from uvicorn.main import STARTUP_FAILURE

        # Version 2 of the pages contacts an analytics host, and version 1 advertises version 2 if its files exist.
        prefect.__ui_v2_static_path__ = Path(os.devnull, "none")
        # Pages list artifacts by id, the last one first. With time-ordered ids, as runs have, the newest comes first.
        Artifact.model_fields["id"].default_factory = TimeSeriesBaseModel.model_fields["id"].default_factory
        Artifact.model_rebuild(force=True)
        pages: ASGIApp = create_app()
        if mlflow := os.environ.get(MLFLOW_VARIABLE):
            pages = Beside(pages, mlflow, given_auth_string())
        app = from_environment(pages)  # `final` would collect garbage, which takes long and finds none since FastAPI 0.137

    collect_garbage_in_a_thread()
    settings = get_current_settings().server
    server = uvicorn.Server(uvicorn.Config(
        app, host=host, port=port, log_level=settings.logging_level.lower(),
        lifespan="on", timeout_keep_alive=settings.api.keepalive_timeout,
        proxy_headers=False,  # with them, a request could fake its origin
        callback_notify=expect_a_turn, timeout_notify=TURN_SECONDS))
    with suppress(KeyboardInterrupt):  # as uvicorn.run, which takes no callback
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def collect_garbage_in_a_thread() -> None:
    """Let a thread of its own collect garbage, never the event loop.

    Cancelled requests leave SQLite cursors behind. Freeing one takes the lock of its connection, which may be held by a thread
    that waits for the database. If the event loop frees it, it waits for that thread, and the thread for a transaction that
    only the event loop can end. Stacks showed this (py-spy, 2026-11-30); SQLite gives up after a minute.
    """
    def collect() -> None:
        for turn in itertools.count(1):
            time.sleep(COLLECT_SECONDS)
            gc.collect(1 if turn % ALL_EVERY else 2)

    gc.disable()
    threading.Thread(target=collect, name="garbage collection", daemon=True).start()


async def expect_a_turn() -> None:
    """Write the stacks of all threads to the log unless the event loop calls this again within STALLED_SECONDS: then something
    blocks it, and the server answers nobody."""
    faulthandler.dump_traceback_later(STALLED_SECONDS)


def server_environment(environment: Mapping[str, str], auth_string: str) -> dict[str, str]:
    """Return ``environment`` with this server's settings: the secret for the gate, pages that call their own server and show no
    advertisements."""
    own = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
    return {name: value for name, value in environment.items() if name not in own} | {
        AUTH_VARIABLE: auth_string,
        "PREFECT_SERVER_UI_API_URL": "/api",  # relative to the pages' address, which may be a tunnel or another port
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1"}  # unused: the gate lets no foreign origin through


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.local.prefect_server", description="Prefect's server behind the gate.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4200)
    options = parser.parse_args()
    environment = server_environment(os.environ, os.environ.get(AUTH_VARIABLE, ""))
    environment.setdefault("PREFECT_UI_URL", f"http://{options.host}:{options.port}")  # for links in messages of automations
    os.environ.clear()
    os.environ.update(environment)
    try:
        serve(options.host, options.port)
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
