"""The gate in front of Prefect's and MLflow's servers, which by themselves serve anyone who can reach their port.

Anyone who can use Prefect's API can run commands through its worker. Two kinds of strangers can reach a port on loopback.
The gate refuses both:

- **Web pages** that the user has open. The Host header must be one of ours, which stops DNS rebinding, and the request must
  not come from another origin. Another port of this machine is another origin.
- **Other users of the machine.** A request must carry the secret: as HTTP Basic authentication (``PREFECT_API_AUTH_STRING``,
  ``MLFLOW_TRACKING_USERNAME`` and ``_PASSWORD``), as the token of Prefect's websocket handshake, or as a cookie. The browser
  gets the cookie when it opens a page over a connection that the kernel says belongs to the server's user. Where the kernel
  cannot tell (containers, another user's proxy), the browser asks for the secret.

Responses carry a Content-Security-Policy that keeps pages from loading anything from another machine.
"""

import base64
import hashlib
import hmac
import json
import os
import re
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xft_core.errors import XftError

AUTH_VARIABLE, HOSTS_VARIABLE = "XFT_SERVER_AUTH_STRING", "XFT_SERVER_ALLOWED_HOSTS"
LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?")
UNGUARDED = ("/health", "/api/health", "/api/ready")  # they only say that the server is up
SAFE_METHODS = ("GET", "HEAD")
POLICY_VIOLATION = 1008  # WebSocket close code
UNKNOWN_USER = 65534  # the kernel's number for a user that this namespace does not map
CONTENT_POLICY = ("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; "
                  "frame-ancestors 'self'; object-src 'none'")
NO_SECRET = ("This server answers only the user who runs it. In a browser, enter the name and password in the file "
             "server-auth in XFT_HOME (name:password). Programs read them from PREFECT_API_AUTH_STRING, or "
             "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.")


class Gate:
    """An ASGI application that passes only the user's own requests to ``app``."""

    def __init__(self, app: ASGIApp, auth_string: str, hosts: frozenset[str] = frozenset()) -> None:
        """``auth_string``: name:password. ``hosts``: allowed Host headers, with port, in addition to loopback's names."""
        self._app, self._auth_string, self._hosts = app, auth_string, hosts
        self._basic = "Basic " + base64.b64encode(auth_string.encode()).decode()
        digest = hmac.new(auth_string.encode(), b"cookie", hashlib.sha256).hexdigest()
        # Browsers send a cookie to every port of a host, so each home's servers need their own cookie name.
        self._cookie, self._cookie_value = f"xft-{digest[:8]}", digest[8:]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        if reason := self._foreign(connection):
            await _refuse(scope, receive, send, 403, reason)
        elif scope["type"] == "websocket":
            known = self._has_secret(connection) or self._has_cookie(connection)
            await self._app(scope, receive if known else self._handshake(receive, send), send)
        else:
            await self._http(connection, scope, receive, send)

    async def _http(self, connection: HTTPConnection, scope: Scope, receive: Receive, send: Send) -> None:
        opens_page = _opens_page(connection)
        if (scope["path"] in UNGUARDED and scope["method"] in SAFE_METHODS) or self._has_cookie(connection):
            await self._app(scope, receive, self._dressed(send))
        elif self._has_secret(connection) or (opens_page and is_own_connection(scope)):
            await self._app(scope, receive, self._dressed(send, with_cookie=opens_page))
        else:
            await _refuse(scope, receive, send, 401, NO_SECRET, {"WWW-Authenticate": 'Basic realm="xft"'} if opens_page else {})

    def _foreign(self, connection: HTTPConnection) -> str | None:
        """Return why a request is foreign, judging by its Host header and the page that sent it; None if it is not."""
        named = connection.headers.getlist("host")
        host = named[0].lower() if len(named) == 1 else ""
        if not (LOOPBACK.fullmatch(host) or host in self._hosts):
            return f"This server does not answer to the name {', '.join(named)[:200]!r}."
        for origin in connection.headers.getlist("origin"):
            if origin.partition("://")[2].lower() != host:
                return f"Requests from pages at {origin[:200]!r} are refused."
        site = connection.headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and "origin" not in connection.headers and not _follows_link(connection):
            return "Requests from foreign pages are refused."
        return None

    def _has_secret(self, connection: HTTPConnection) -> bool:
        return _equal(connection.headers.get("authorization", ""), self._basic)

    def _has_cookie(self, connection: HTTPConnection) -> bool:
        return _equal(connection.cookies.get(self._cookie, ""), self._cookie_value)

    def _handshake(self, receive: Receive, send: Send) -> Receive:
        """Return a receiver of a websocket's messages; the first one from Prefect's client must contain the secret."""
        is_known = False

        async def checked() -> Message:
            nonlocal is_known
            message = await receive()
            if message["type"] == "websocket.receive" and not is_known:
                if not (is_known := _equal(_token(message), self._auth_string)):
                    await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "PREFECT_API_AUTH_STRING"})
                    return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
            return message

        return checked

    def _dressed(self, send: Send, with_cookie: bool = False) -> Send:
        """Return a sender that adds the page policy to every response, and the cookie on request."""
        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.append("Content-Security-Policy", CONTENT_POLICY)
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["X-DNS-Prefetch-Control"] = "off"
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Cache-Control"] = "no-cache"  # a page from the cache would come without the cookie
                if with_cookie:
                    headers.append("Set-Cookie", f"{self._cookie}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        return dressed


def from_environment(app: ASGIApp) -> Gate:
    """Build the gate from XFT_SERVER_AUTH_STRING (name:password) and XFT_SERVER_ALLOWED_HOSTS (host:port,...).

    Raises XftError if XFT_SERVER_AUTH_STRING is missing or malformed.
    """
    return Gate(app, given_auth_string(), allowed_hosts())


def given_auth_string() -> str:
    """Return the value of XFT_SERVER_AUTH_STRING, name:password. Raises XftError for any other form."""
    auth_string = os.environ.get(AUTH_VARIABLE, "")
    if not all(auth_string.partition(":")):
        raise XftError(f"{AUTH_VARIABLE} must be name:password; without it anyone could use this server.")
    return auth_string


def allowed_hosts() -> frozenset[str]:
    """Return the hosts in XFT_SERVER_ALLOWED_HOSTS."""
    return frozenset(name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name.strip())


def is_own_connection(scope: Scope) -> bool:
    """Return whether the other end of a TCP connection over IPv4 loopback belongs to the user who runs this process."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None or client[0] != "127.0.0.1" or os.getuid() == UNKNOWN_USER:
        return False
    for table in ("tcp", "tcp6"):  # tcp6 lists dual-stack sockets, including those that carry IPv4
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *rest = line.split()
            if (_loopback_port(local), _loopback_port(remote)) == (client[1], server[1]) and state == ESTABLISHED:
                return int(rest[3]) == os.getuid()
    return False


ESTABLISHED = "01"
LOOPBACK_BYTES = "0100007F"  # 127.0.0.1 in the kernel's tables on a little-endian machine


def _loopback_port(address: str) -> int | None:
    host, _, port = address.partition(":")
    return int(port, 16) if host.endswith(LOOPBACK_BYTES) else None


def _opens_page(connection: HTTPConnection) -> bool:
    """Return whether a browser opens a page in a window, as opposed to a page that requests data."""
    if connection.scope["method"] not in SAFE_METHODS:
        return False
    if mode := connection.headers.get("sec-fetch-mode"):
        return mode == "navigate"
    return "text/html" in connection.headers.get("accept", "")


def _follows_link(connection: HTTPConnection) -> bool:
    """Return whether the user follows a link and leaves the page that contains it."""
    return (connection.scope["type"] == "http" and _opens_page(connection)
            and connection.headers.get("sec-fetch-dest") == "document")


def _token(message: Message) -> str:
    try:
        content = json.loads(message.get("text") or message.get("bytes") or b"")
        return str(content["token"]) if content["type"] == "auth" else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


async def _refuse(
    scope: Scope, receive: Receive, send: Send, status: int, reason: str, headers: dict[str, str] | None = None,
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason[:100]})
    else:
        await PlainTextResponse(reason + "\n", status, headers)(scope, receive, send)
