"""A Hub on a loopback port. It implements the part of the protocol that the real client uses to create a repository, upload
through LFS, commit, and download. Stored content is checked: an LFS object must have the sha256 that the client announced.

``fail_uploads``: the number of LFS uploads that are refused (503) before one succeeds. ``altered``: a file whose downloaded
content has one byte changed.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"


class Repository:
    """One repository. ``commits`` maps each commit ID to its files by name."""

    def __init__(self, private: bool) -> None:
        self.private, self.commits, self.head = private, {"0" * 40: dict[str, bytes]()}, "0" * 40


class FakeHub:
    """A Hub as described above. ``requests``: method and path of each request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail_uploads, self.altered = 0, ""
        self.address = ""

    @contextmanager
    def serving(self) -> "Iterator[FakeHub]":
        """Serve until the block ends."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, content: Any = b"", **headers: str) -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(urlsplit(self.path).path)
                hub.requests.append(f"{self.command} {path}")
                if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
                hub.handle(self, self.command, path, body)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def handle(self, request: Any, method: str, path: str, body: bytes) -> None:
        """Answer one request."""
        content: Any = json.loads(body) if body and method == "POST" and "/commit/" not in path else {}
        if path == "/api/repos/create":
            name = f"{content.get('organization', 'me')}/{content['name']}"
            there = name in self.repositories
            self.repositories.setdefault(name, Repository(content.get("visibility") == "private"))
            return request.answer(409 if there else 200, {"url": f"{self.address}/{name}", "error": "exists"})
        if path.startswith("/lfs/"):
            return self._object(request, path.removeprefix("/lfs/"), body)
        if path.endswith(".git/info/lfs/objects/batch"):
            found = [{"oid": item["oid"], "size": item["size"]} | ({} if item["oid"] in self.objects else {
                "actions": {"upload": {"href": f"{self.address}/lfs/{item['oid']}"}}}) for item in content["objects"]]
            return request.answer(200, {"transfer": "basic", "objects": found})
        if path == "/api/validate-yaml":
            return request.answer(200, {"errors": [], "warnings": []})
        parts = path.removeprefix("/api/models/").lstrip("/").split("/")
        repository = self.repositories.get("/".join(parts[:2]))
        if repository is None:
            return request.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if path.startswith("/api/models/"):
            return self._api(request, "/".join(parts[:2]), repository, parts[2:], content, body)
        assert parts[2] == "resolve"
        files = repository.commits[repository.head if parts[3] == "main" else parts[3]]
        name = "/".join(parts[4:])
        if name not in files:
            return request.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        stored = files[name]
        if name == self.altered:
            stored = stored[:-1] + bytes([stored[-1] ^ 1])
        commit = repository.head if parts[3] == "main" else parts[3]
        return request.answer(200, stored, ETag=f'"{hashlib.sha256(files[name]).hexdigest()}"', X_Repo_Commit=commit)

    def _api(self, request: Any, name: str, repository: Repository, rest: list[str], content: Any, body: bytes) -> None:
        if not rest or rest[0] == "revision":
            commit = rest[1] if rest and rest[1] in repository.commits else repository.head
            listed = [{"rfilename": path} for path in repository.commits[commit]]
            return request.answer(200, {
                "id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": listed, "tags": [],
                "downloads": 0, "likes": 0})
        if rest[0] == "tree":
            files = repository.commits[rest[1] if rest[1] in repository.commits else repository.head]
            return request.answer(200, [
                {"type": "file", "path": path, "size": len(item), "oid": hashlib.sha1(item).hexdigest()}
                for path, item in files.items()])
        if rest[0] == "preupload":
            return request.answer(200, {"files": [
                {"path": item["path"], "uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False} for item in content["files"]]})
        assert rest[0] == "commit"
        files = dict(repository.commits[repository.head])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(body + repository.head.encode()).hexdigest()
        repository.commits[oid], repository.head = files, oid
        return request.answer(200, {"commitOid": oid, "commitUrl": f"{self.address}/{name}/commit/{oid}"})

    def _object(self, request: Any, oid: str, body: bytes) -> None:
        if self.fail_uploads:
            self.fail_uploads -= 1
            return request.answer(403, {"error": "cut off"})
        if hashlib.sha256(body).hexdigest() != oid:
            return request.answer(400, {"error": "another sha256"})
        self.objects[oid] = body
        return request.answer(200)
