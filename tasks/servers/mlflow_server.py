"""MLflow's tracking server behind the gate (``gate.py``). ``mlflow server`` has no place for it: its own protection lets
every page of this machine in, whatever its port, and knows no secret.

    python -m tasks.servers.mlflow_server --backend-store-uri URI --artifacts-destination PLACE [--host HOST] [--port PORT]
"""

import argparse
import os
import sys
from pathlib import Path

from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.servers.gate import allowed_hosts, from_environment, given_auth_string
from xft_core.errors import XftError

LOOPBACK = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*")
# MLflow's pages keep the kind of work here, and begin with GenAI, which hides runs and models. Its lists drop the kind from
# their links, so that an address alone does not hold.
KIND_OF_WORK = """<script>try {
if (!localStorage.getItem("mlflow.workflowType_v1")) localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
} catch (error) {}</script>"""


class MachineLearningFirst:
    """MLflow's application, whose page begins with machine learning until the user chooses another kind of work."""

    def __init__(self, app: ASGIApp, page: str) -> None:
        """``page``: MLflow's index.html."""
        self._app, self._page = app, page.replace("<head>", f"<head>{KIND_OF_WORK}", 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            await HTMLResponse(self._page)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def serve(host: str, port: int, backend_store_uri: str, artifacts_destination: str) -> None:
    """Serve until SIGTERM. Raises XftError when the environment has no secret for the gate."""
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
    guarded = from_environment(MachineLearningFirst(app, page))
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
