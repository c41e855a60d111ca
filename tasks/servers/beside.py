"""Serve MLflow's pages at ``/mlflow`` of Prefect's address. One port is then enough for both, and links between them work
through a tunnel, on another port, or under another name.

The gate is in front, so only the user's own requests come here. They are forwarded to MLflow's server with the secret that both
share, as requests from this machine.
"""

import base64
from collections.abc import AsyncIterator

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.settings import BESIDE

SECONDS = 120.0  # a page of many runs takes MLflow some seconds
# Headers of this connection or about its client: we are the client of MLflow's server.
NOT_PASSED_ON = frozenset({
    "host", "origin", "referer", "cookie", "authorization", "connection", "transfer-encoding", "content-length", "upgrade",
    "accept-encoding"})
NOT_PASSED_BACK = frozenset({
    "connection", "transfer-encoding", "set-cookie", "content-security-policy", "server", "date", "content-length"})


class Beside:
    """An ASGI application: ``/mlflow/...`` goes to MLflow, everything else to ``app``."""

    def __init__(self, app: ASGIApp, mlflow: str, auth_string: str) -> None:
        """``mlflow``: address of MLflow's server without a trailing slash; ``auth_string``: name:password."""
        self._app, self._mlflow = app, mlflow
        self._basic = "Basic " + base64.b64encode(auth_string.encode()).decode()
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] == BESIDE or scope["path"].startswith(f"{BESIDE}/")):
            await self._app(scope, receive, send)
        elif scope["path"] == BESIDE:  # the pages use relative addresses
            await RedirectResponse(f"{BESIDE}/")(scope, receive, send)
        else:
            await self._pass_on(Request(scope, receive), send)

    async def _pass_on(self, request: Request, send: Send) -> None:
        if self._client is None:  # it belongs to the serving event loop
            self._client = httpx.AsyncClient(timeout=SECONDS, trust_env=False)
        path = request.scope["raw_path"].decode("ascii").removeprefix(BESIDE)
        query = request.scope["query_string"].decode("ascii")
        headers = [(name, value) for name, value in request.headers.items()
                   if name not in NOT_PASSED_ON and not name.startswith("sec-fetch-")]
        asked = self._client.build_request(
            request.method, f"{self._mlflow}{path}{'?' if query else ''}{query}", content=await request.body(),
            headers=[*headers, ("authorization", self._basic)])
        try:
            answer = await self._client.send(asked, stream=True)
        except httpx.HTTPError:
            response = PlainTextResponse("MLflow's server does not answer.\n", 502)
            await response(request.scope, request.receive, send)
            return
        kept = {name: value for name, value in answer.headers.items() if name not in NOT_PASSED_BACK}
        await StreamingResponse(_content(answer), answer.status_code, kept)(request.scope, request.receive, send)


async def _content(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()
