"""Requests to a server from a page of another origin, a page that points its own host name at 127.0.0.1, and another user."""

import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple

FOREIGN_PORT = "http://127.0.0.1:9"


class Attempt(NamedTuple):
    """A request to ``port`` and the expected status. ``knows``: it carries the secret, as a browser would."""

    name: str
    method: str
    headers: dict[str, str]
    status: int
    knows: bool = True


ATTEMPTS = [
    Attempt("no secret", "POST", {"Content-Type": "application/json"}, 401, knows=False),
    Attempt("preflight", "OPTIONS", {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST",
                                     "Access-Control-Request-Headers": "content-type"}, 403),
    Attempt("preflight from another port", "OPTIONS", {"Origin": FOREIGN_PORT, "Access-Control-Request-Method": "POST"}, 403),
    Attempt("simple POST", "POST", {"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
    Attempt("simple POST from another port", "POST", {"Origin": FOREIGN_PORT, "Content-Type": "text/plain"}, 403),
    Attempt("POST of a sandboxed frame or a file", "POST", {"Origin": "null", "Content-Type": "text/plain"}, 403),
    Attempt("rebound name", "POST", {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 403),
    Attempt("rebound name that looks like ours", "POST", {"Host": "127.0.0.1.evil.example:{port}"}, 403),
    Attempt("rebound name of a private address", "POST", {"Host": "192.168.evil.example:{port}"}, 403),
    Attempt("GET of a script tag", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    Attempt("GET of a script tag on another port", "GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    Attempt("frame", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
]


def status(address: str, method: str, headers: dict[str, str], body: Any = None) -> int:
    """Return the status of the answer."""
    data = json.dumps(body or {}).encode() if method == "POST" else None
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers, method=method), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def answers(address: str, authorization: str, body: Any = None) -> dict[str, int]:
    """Return the status for each attempt on an API's address."""
    port = address.split(":")[2].partition("/")[0]
    found = {}
    for attempt in ATTEMPTS:
        headers = {name: value.format(port=port) for name, value in attempt.headers.items()}
        if attempt.knows:
            headers["Authorization"] = authorization
        found[attempt.name] = status(address, attempt.method, headers, body)
    return found


EXPECTED = {attempt.name: attempt.status for attempt in ATTEMPTS}
