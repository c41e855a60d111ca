"""Data at S3 and web addresses, against real servers over HTTP."""

import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.object_store import data
from tasks.object_store.bucket import StoreRefused
from tasks.preflight import check_inputs
from tasks.settings import settings
from tests.tasks.object_store.proxy import BUCKET, Proxy, raw_client
from xft_core.errors import DataError
from xft_core.recipe.load import parse
from xft_core.recipe.sections import DataConfig, Recipe
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import stage_key

NEVER = threading.Event()
logger = logging.getLogger("tests.remote_data")
ROWS = b'{"question": "a", "answer": "b"}\n'


def put(s3: Proxy, name: str, content: bytes = ROWS) -> None:
    raw_client(s3.target).put_object(Bucket=BUCKET, Key=name, Body=content)


def fetch(address: str) -> Path:
    return data.fetch(address, NEVER, logger)


def test_an_object_is_fetched_once_and_counts_by_its_contents(s3: Proxy, tmp_path: Path) -> None:
    put(s3, "rows/one.jsonl")
    address = f"s3://{BUCKET}/rows/one.jsonl"
    path = fetch(address)
    assert path.read_bytes() == ROWS and path.parent.parent == settings().data
    asked = s3.count("GET", "rows/one.jsonl")
    assert fetch(address) == path and s3.count("GET", "rows/one.jsonl") == asked
    (tmp_path / "local.jsonl").write_bytes(ROWS)
    fields = data.fetched({"data": DataConfig(path=address)}, NEVER, logger)
    assert stage_key(PrepareStage(output=tmp_path, **fields)) == stage_key(
        PrepareStage(output=tmp_path, data=DataConfig(path=str(tmp_path / "local.jsonl"))))
    put(s3, "rows/one.jsonl", ROWS * 2)
    assert fetch(address).read_bytes() == ROWS * 2


def test_a_prefix_and_a_pattern_are_directories_of_shards(s3: Proxy) -> None:
    for name in ("shards/a.jsonl", "shards/b.jsonl.gz", "shards/deep/c.csv", "shards/notes.txt", "shards2/d.jsonl"):
        put(s3, name)
    for address in (f"s3://{BUCKET}/shards/", f"s3://{BUCKET}/shards"):
        found = fetch(address)
        assert {path.name for path in found.rglob("*") if path.is_file()} == {"a.jsonl", "b.jsonl.gz", "c.csv"}
    assert fetch(f"s3://{BUCKET}/shards/*.jsonl").read_bytes() == ROWS  # the only file that matches


@pytest.mark.parametrize(("address", "error", "message"), [
    (f"s3://{BUCKET}/nothing.jsonl", DataError, "There is no data at"), (f"s3://{BUCKET}/no/where/", DataError, "no data at"),
    ("s3://no-such-bucket-here/a.jsonl", StoreRefused, "There is no bucket"),
    (f"s3://{BUCKET}/a b.jsonl", DataError, "is not s3://bucket/prefix"),
    (f"s3://key:secret@{BUCKET}/a.jsonl", DataError, "is not s3://bucket/prefix")])
def test_an_address_that_gives_nothing(s3: Proxy, address: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        fetch(address)
    assert "secret" not in str(raised.value)
    recipe = parse(Recipe, {"data": {"sources": [{"path": address}]}, "evaluate": {"benchmarks": []}})
    with pytest.raises(error, match=message):
        check_inputs(recipe)


@pytest.fixture
def web() -> Iterator[str]:
    class Files(http.server.BaseHTTPRequestHandler):
        content = ROWS

        def do_GET(self) -> None:
            if "rows" not in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("ETag", f'"{hash(Files.content)}"')
            self.send_header("Content-Length", str(len(Files.content) + 5 * ("cut" in self.path)))
            self.end_headers()
            self.wfile.write(Files.content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_file_of_the_web(web: str) -> None:
    path = fetch(f"{web}/rows.jsonl?download=1")
    assert path.name == "rows.jsonl" and path.read_bytes() == ROWS
    assert fetch(f"{web}/rows.jsonl?download=1") == path


def test_what_the_web_does_not_give(web: str) -> None:
    for address, message in ((f"{web}/other.jsonl", "the server answers 404"),
                             (f"{web}/rows", "must end in the name of a data file"),
                             (f"{web}/rows-cut.jsonl", "cannot be fetched|arrived"),
                             ("http://127.0.0.1:9/rows.jsonl", "cannot be fetched: .*If this machine has no network"),
                             ("https://me:secret@127.0.0.1/rows.jsonl", "contain no password")):
        with pytest.raises(DataError, match=message) as raised:
            fetch(address)
        assert "secret" not in str(raised.value)
    assert not [path for path in settings().data.rglob("*") if path.is_file() and "rows-cut" in path.name]
