"""A real S3 server over HTTP (moto), and a proxy in front of it that fails as networks and object stores do."""

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BUCKET = "models"
ACCESS_KEY, SECRET_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI-this-must-not-be-written-anywhere"

Fault = Callable[["Request"], str | int | None]


@dataclass(frozen=True)
class Request:
    """The request that a fault decides on. ``number`` counts all requests from 1."""

    method: str
    path: str
    number: int


@dataclass
class Proxy:
    """A proxy whose ``fault`` returns for each request: None (pass on), a status with an S3 error code ("503 SlowDown"), "cut
    request" (the connection is closed in the middle of the upload), "cut response" (closed after half of the answer), "flip
    request" or "flip response" (one bit of the content is flipped), or "other tags" (as from a bucket whose tags are not MD5s).
    With ``certificate``, a file with key and certificate, clients connect by HTTPS."""

    target: tuple[str, int]
    fault: Fault | None = None
    certificate: Path | None = None
    message: str = "on purpose"
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        proxy = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                with lock:
                    request = Request(self.command, self.path, len(proxy.requests) + 1)
                    proxy.requests.append(request)
                fault = proxy.fault(request) if proxy.fault else None
                if fault == "cut request":
                    self.rfile.read(min(64 * 1024, int(self.headers.get("Content-Length") or 0)))
                    return self.cut()
                body = self.body()
                if isinstance(fault, str) and fault[0].isdigit():
                    return self.refuse(fault)
                if fault == "flip request":
                    body = flipped(body)
                upstream = HTTPConnection(*proxy.target)
                chunked = "Transfer-Encoding" in self.headers  # passed on unchanged: servers must see the client's mistakes
                upstream.request(
                    self.command, self.path, iter([body]) if chunked else body, dict(self.headers.items()),
                    encode_chunked=chunked)
                answer = upstream.getresponse()
                content = answer.read()
                if fault == "flip response":
                    content = flipped(content)
                elif fault == "other tags":
                    content = re.sub(rb"<ETag>.*?</ETag>", b"<ETag>&quot;0123&quot;</ETag>", content)
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() == "etag" and fault == "other tags":
                        value = '"0123"'
                    if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if fault == "cut response":
                    self.wfile.write(content[:len(content) // 2])
                    return self.cut()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def handle_expect_100(self) -> bool:
                self.send_response_only(100)
                self.end_headers()
                return True

            def body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def refuse(self, fault: str) -> None:
                status, code = fault.split()
                content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{proxy.message}</Message></Error>".encode()
                self.send_response(int(status))
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/xml")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def cut(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                return

        self.server = Server(("127.0.0.1", 0), Handler)
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Return the address for XFT_S3_ENDPOINT_URL."""
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.server.server_address[1]}"

    def count(self, method: str, part: str = "") -> int:
        """Return how many requests of that method had ``part`` in their path."""
        return sum(request.method == method and part in request.path for request in self.requests)

    def stop(self) -> None:
        """Close the port."""
        self.server.shutdown()
        self.server.server_close()


def flipped(content: bytes) -> bytes:
    """Return ``content`` with one bit in its middle flipped."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1:] if content else content


def fail_first(times: int, what: str, when: Callable[[Request], bool] = lambda request: True) -> Fault:
    """Return a fault that makes the first ``times`` requests matching ``when`` fail as ``what``."""
    left, lock = [times], threading.Lock()

    def fault(request: Request) -> str | None:
        with lock:
            if left[0] > 0 and when(request):
                left[0] -= 1
                return what
        return None
    return fault


@lru_cache(maxsize=8)
def raw_client(address: tuple[str, int], access_key: str = ACCESS_KEY) -> Any:
    """Return a boto3 client that bypasses the proxy and ``tasks.object_store.bucket``, to inspect and damage stored objects."""
    import boto3

    return boto3.session.Session().client(
        "s3", endpoint_url=f"http://{address[0]}:{address[1]}", region_name="us-east-1",
        aws_access_key_id=access_key, aws_secret_access_key=SECRET_KEY)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Run a real S3 server over HTTP for the test session: moto. The tests of ``tasks`` run against Ceph too (conftest.py)."""
    from tests.tasks.object_store.servers import moto

    with moto() as address:
        yield address


@pytest.fixture
def s3(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """Create an empty bucket behind a proxy, settings that name it, and the test's own home."""
    proxy = Proxy(s3_server)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XFT_STORE": f"s3://{BUCKET}/some/prefix", "XFT_S3_ENDPOINT_URL": proxy.address, "XFT_HOME": str(tmp_path / "home")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    client = raw_client(s3_server)
    client.create_bucket(Bucket=BUCKET)
    yield proxy
    proxy.stop()
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    for item in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=BUCKET, Key=item["Key"], UploadId=item["UploadId"])
    client.delete_bucket(Bucket=BUCKET)
