"""Access through the gate: only our own pages, and programs with the secret. The real servers behind it are tested in
tests/flows/local/test_servers.py and, with a real page, in tests/ui/test_strangers.py."""

import base64
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from tasks.servers import gate
from tasks.servers.gate import Gate, is_own_connection
from xft_core.errors import XftError

AUTH, EVENTS = "xft:geheim", "ws://127.0.0.1:4200/events"
BASIC = {"Authorization": "Basic " + base64.b64encode(AUTH.encode()).decode()}
PAGE = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none", "Accept": "text/html"}


async def page(request: Request) -> HTMLResponse:
    return HTMLResponse("through")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        await websocket.receive_json()
        await websocket.send_text("through")
    except WebSocketDisconnect:
        return
    await websocket.close()


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = Starlette(routes=[
        Route("/{path:path}", page, methods=["GET", "POST", "OPTIONS", "DELETE"]), WebSocketRoute("/events", echo)])
    with TestClient(Gate(app, AUTH, frozenset({"prefect:4200"})), base_url="http://127.0.0.1:4200") as made:
        yield made


@pytest.fixture
def own_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the kernel assigns the browser's connection to the user."""
    monkeypatch.setattr(gate, "is_own_connection", lambda scope: True)


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "localhost:9999", "LOCALHOST", "[::1]:4200", "prefect:4200"])
def test_own_names_are_answered_on_any_port(client: TestClient, host: str) -> None:
    assert client.get("/api", headers=BASIC | {"Host": host}).text == "through"


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:4200", "127.0.0.1.evil.example", "localhost.evil.example:4200", "127.0.0.1:4200@evil.example",
    "xlocalhost", "prefect:4201", "prefect", "10.0.0.1", "0.0.0.0:4200", "127.0.0.1:", "localhost:4200\u0660", ""])
def test_foreign_names_are_refused(client: TestClient, host: str) -> None:
    for path in ("/api", "/health"):
        assert client.get(path, headers=BASIC | {"Host": host.encode()}).status_code == 403  # type: ignore[arg-type]


@pytest.mark.parametrize("origin", [
    "https://evil.example", "http://127.0.0.1:8000", "http://localhost:4200", "null", "", "http://127.0.0.1:42000",
    "http://127.0.0.1:4200.evil.example"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_foreign_origins_are_refused_whatever_they_know(client: TestClient, origin: str, method: str) -> None:
    answer = client.request(method, "/api", headers=BASIC | {"Origin": origin})
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_own_origin_gets_through(client: TestClient) -> None:
    assert client.post("/api", headers=BASIC | {"Origin": "http://127.0.0.1:4200"}).text == "through"
    behind_tls = BASIC | {"Origin": "https://prefect:4200", "Host": "prefect:4200"}
    assert client.post("/api", headers=behind_tls).text == "through"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.usefixtures("own_connection")
def test_a_foreign_page_may_link_to_ours_but_not_hold_parts_of_it(client: TestClient, site: str) -> None:
    link = PAGE | {"Sec-Fetch-Site": site}
    assert client.get("/runs/1", headers=link).text == "through"
    for part in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}):
        assert client.get("/runs/1", headers=link | part).status_code == 403
    assert client.post("/runs/1", headers=link).status_code == 403


def test_without_the_secret_there_is_nothing_but_health(client: TestClient) -> None:
    assert client.get("/health").text == "through"
    for path in ("/", "/api", "/health/", "/x/health", "/api/health/x", "/%2e%2e/health"):
        assert client.get(path).status_code == 401
    assert client.post("/health").status_code == 401
    for wrong in ("", "Basic", "Basic " + base64.b64encode(b"xft:").decode(), "Bearer geheim", "Basic \u00fc"):
        assert client.get("/api", headers={"Authorization": wrong.encode()}).status_code == 401  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_connection")
def test_the_browser_gets_a_cookie_with_the_page_and_uses_it(client: TestClient) -> None:
    assert client.post("/api").status_code == 401
    assert client.get("/api", headers={"Sec-Fetch-Mode": "cors"}).status_code == 401  # data, not a page
    opened = client.get("/", headers=PAGE)
    assert opened.text == "through"
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "geheim" not in cookie
    assert opened.headers["cache-control"] == "no-cache"
    assert client.post("/api", headers={"Origin": "http://127.0.0.1:4200"}).text == "through"
    with client.websocket_connect(EVENTS, headers={"Origin": "http://127.0.0.1:4200"}) as socket:
        socket.send_json({})
        assert socket.receive_text() == "through"


def test_other_users_are_asked_for_the_secret_and_then_get_the_cookie(client: TestClient) -> None:
    asked = client.get("/", headers=PAGE)
    assert (asked.status_code, asked.headers["www-authenticate"]) == (401, 'Basic realm="xft"')
    assert "set-cookie" not in asked.headers
    assert "set-cookie" in client.get("/", headers=PAGE | BASIC).headers
    assert client.post("/api").text == "through"


def test_two_homes_do_not_take_each_others_cookie() -> None:
    names = {Gate(Starlette(), f"xft:{secret}")._cookie for secret in ("a", "b")}
    assert len(names) == 2


def test_pages_are_told_to_ask_nobody_else(client: TestClient) -> None:
    policy = client.get("/", headers=PAGE | BASIC).headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ") and "frame-ancestors 'self'" in policy
    assert "http" not in policy and "*" not in policy


@pytest.mark.parametrize("headers", [
    BASIC | {"Origin": "http://127.0.0.1:8000"}, BASIC | {"Origin": "null"}, BASIC | {"Host": "evil.example:4200"}])
def test_websockets_of_foreign_pages_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(EVENTS, headers=headers):
        pass


@pytest.mark.parametrize(("first", "expected"), [
    ({"type": "auth", "token": AUTH}, "through"), ({"type": "auth", "token": "xft:"}, None), ({"type": "auth"}, None),
    ({"type": "filter", "token": AUTH}, None), ([], None), ({"type": "auth", "token": None}, None)])
def test_a_websocket_begins_with_the_secret(client: TestClient, first: Any, expected: str | None) -> None:
    with client.websocket_connect(EVENTS) as socket:
        socket.send_json(first)
        if expected:
            assert socket.receive_text() == expected
        else:
            with pytest.raises(WebSocketDisconnect):
                socket.receive_text()


def test_the_kernel_knows_whose_a_connection_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client_end:
        scope: dict[str, Any] = {"client": client_end.getsockname(), "server": server.getsockname()}
        assert is_own_connection(scope)
        assert not is_own_connection(scope | {"client": ("10.0.0.1", scope["client"][1])})
        assert not is_own_connection(scope | {"server": ("127.0.0.1", 1)})
        assert not is_own_connection({})
    assert not is_own_connection(scope)  # closed


@pytest.mark.parametrize("given", ["", "geheim", ":geheim", "xft:"])
def test_no_server_without_a_secret(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("XFT_SERVER_AUTH_STRING", given)
    with pytest.raises(XftError, match="XFT_SERVER_AUTH_STRING must be name:password"):
        gate.from_environment(Starlette())
