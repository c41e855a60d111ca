"""MLflow's pages through Prefect's port: which requests are passed on. With a real page: tests/ui/test_landing.py."""

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tasks.servers.beside import Beside
from tasks.servers.gate import Gate

AUTH = "xft:geheim"
BASIC = "Basic " + base64.b64encode(AUTH.encode()).decode()


class Mlflow(ThreadingHTTPServer):
    """An MLflow that records its requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Mlflow)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Set-Cookie", "own=1")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def mlflow() -> Iterator[Mlflow]:
    with Mlflow() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def client_of(address: str) -> TestClient:
    async def page(_: Request) -> PlainTextResponse:
        return PlainTextResponse("Prefect")

    app = Beside(Starlette(routes=[Route("/{path:path}", page)]), address, AUTH)
    return TestClient(Gate(app, AUTH), base_url="http://127.0.0.1:4200", headers={"Authorization": BASIC})


def test_it_is_asked_as_from_this_machine(mlflow: Mlflow) -> None:
    with client_of(f"http://127.0.0.1:{mlflow.server_port}") as client:
        answer = client.post(
            "/mlflow/ajax-api/2.0/x%20y?a=1&b=%2F", content=b"body", cookies={"xft-1": "secret"},
            headers={"Origin": "http://127.0.0.1:4200", "X-Own": "1", "Content-Type": "text/plain"})
        assert (answer.status_code, answer.text) == (201, "{}")
        assert "own" not in answer.cookies
        assert len(answer.headers.get_list("content-security-policy")) == 1
        assert client.get("/mlflowers").text == client.get("/api/x").text == "Prefect"
        assert client.get("/mlflow", follow_redirects=False).headers["location"] == "/mlflow/"
    method, path, headers, body = mlflow.asked[0]
    assert (method, path, body) == ("POST", "/ajax-api/2.0/x%20y?a=1&b=%2F", b"body")
    assert headers["host"] == f"127.0.0.1:{mlflow.server_port}" and headers["authorization"] == BASIC
    assert headers["x-own"] == "1" and not {"origin", "cookie"} & headers.keys()


def test_strangers_do_not_get_there(mlflow: Mlflow) -> None:
    with client_of(f"http://127.0.0.1:{mlflow.server_port}") as client:
        assert client.get("/mlflow/", headers={"Authorization": ""}).status_code == 401
        assert client.get("/mlflow/", headers={"Host": "evil.example"}).status_code == 403
        assert client.post("/mlflow/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert mlflow.asked == []


def test_one_that_is_away_is_said_to_be() -> None:
    with client_of("http://127.0.0.1:9") as client:
        assert (client.get("/mlflow/").status_code, client.get("/other").status_code) == (502, 200)
