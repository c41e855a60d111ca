"""MLflow's tracking server behind the gate (``gate.py``). ``mlflow server`` cannot be gated, and its own protection admits
every page of this machine, on any port, and has no secret.

    python -m tasks.servers.mlflow_server --backend-store-uri URI --artifacts-destination PLACE [--host HOST] [--port PORT]
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.servers.gate import allowed_hosts, from_environment, given_auth_string
from tasks.settings import FIRST_VIEW
from xft_core.errors import XftError

LOOPBACK = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*")
# What MLflow's pages store in the browser: the workflow type, which defaults to GenAI and hides runs and models (its lists drop
# the type from their links, so setting it in an address is not enough); and that the assistant, which covers a quarter of the
# page, has opened once.
BEGINNING = """<script>try {
for (const [key, value] of [["mlflow.workflowType_v1", '"machine_learning"'],
    ["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true"]])
    if (!localStorage.getItem(key)) localStorage.setItem(key, value);
} catch (error) {}</script>"""


FIRST_VIEWS = """<script>try {
for (const [key, view] of Object.entries(VIEWS)) if (!localStorage.getItem(key)) localStorage.setItem(key, view);
} catch (error) {}</script>"""
PREFECT_RUN = re.compile(r"/runs/flow-run/[0-9a-f-]+")
MOST_EXPERIMENTS = 1000


class MachineLearningFirst:
    """MLflow's application with other defaults: its page starts with the machine learning workflow, and an experiment's table
    with the columns that matter, until the user chooses others."""

    def __init__(self, app: ASGIApp, page: str, first_views: Callable[[], dict[str, str]], prefect_ui: str = "") -> None:
        """``page``: MLflow's index.html; ``first_views``: initial layouts of the experiments' tables, see
        ``tracking/charts.py``; ``prefect_ui``: address of Prefect's pages, to which links to its runs are redirected."""
        self._app, self._page, self._first_views, self._prefect_ui = app, page, first_views, prefect_ui

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_read = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if is_read and scope["path"] == "/":
            views = await run_in_threadpool(self._first_views)
            await HTMLResponse(with_beginnings(self._page, views))(scope, receive, send)
        elif is_read and self._prefect_ui and PREFECT_RUN.fullmatch(scope["path"]):
            await RedirectResponse(self._prefect_ui + scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def with_beginnings(page: str, views: dict[str, str]) -> str:
    """Return MLflow's ``page`` with defaults for a browser on its first visit: the workflow type, and the layouts of tables by
    experiment id, in the form that MLflow's pages store them. A ``<`` in a name cannot end the script."""
    kept = json.dumps({f'MLflowLocalStorage-1.1-ExperimentPage-["{number}"]-ReactComponentState': view
                       for number, view in views.items()}).replace("<", "\\u003c")
    return page.replace("<head>", f"<head>{BEGINNING}{FIRST_VIEWS.replace('VIEWS', kept)}", 1)


def first_views() -> dict[str, str]:
    """Return the initial layouts of experiments' tables by experiment id; none if the database cannot be read now."""
    from mlflow.entities import ViewType
    from mlflow.server.handlers import _get_tracking_store

    try:
        found = _get_tracking_store().search_experiments(view_type=ViewType.ACTIVE_ONLY, max_results=MOST_EXPERIMENTS)
        return {str(item.experiment_id): item.tags[FIRST_VIEW] for item in found if FIRST_VIEW in item.tags}
    except Exception as error:
        print(f"MLflow's tables start with its default columns: {error}", file=sys.stderr)
        return {}


def serve(host: str, port: int, backend_store_uri: str, artifacts_destination: str) -> None:
    """Serve until SIGTERM. Raises XftError if the environment has no secret for the gate."""
    given_auth_string()  # before the slow imports
    import uvicorn
    from mlflow.server import app as flask_app
    from mlflow.server import constants, handlers
    from mlflow.utils.server_cli_utils import resolve_default_artifact_root

    artifact_root = resolve_default_artifact_root(True, None, backend_store_uri)
    os.environ |= {  # as `mlflow server` does
        constants.BACKEND_STORE_URI_ENV_VAR: backend_store_uri, constants.REGISTRY_STORE_URI_ENV_VAR: backend_store_uri,
        constants.ARTIFACT_ROOT_ENV_VAR: artifact_root, constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts_destination,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join([*LOOPBACK, *sorted(allowed_hosts())])}
    handlers.initialize_backend_stores(backend_store_uri, backend_store_uri, artifact_root)
    from mlflow.server.fastapi_app import app

    page = Path(str(flask_app.static_folder), "index.html").read_text(encoding="utf-8")
    guarded = from_environment(MachineLearningFirst(app, page, first_views, os.environ.get("XFT_PREFECT_UI_URL", "")))
    uvicorn.run(guarded, host=host, port=port, log_level="warning", lifespan="on", proxy_headers=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.servers.mlflow_server", description="MLflow's server behind the gate.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--backend-store-uri", required=True, metavar="URI")
    parser.add_argument("--artifacts-destination", required=True, metavar="PLACE")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        serve(options.host, options.port, options.backend_store_uri, options.artifacts_destination)
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
