"""Benchmarks from a server on this machine: the exact released file arrives, or nothing is kept."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.factories import shared_data
from xft_core.benchmarks.fetch import SOURCES, Source, fetch
from xft_core.benchmarks.find import find_benchmark
from xft_core.errors import DataError

CONTENT = b'{"task_id": "a/0"}\n' * 50
HUMANEVAL = shared_data("benchmarks/HumanEvalPlus-v0.1.10.jsonl.gz")
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a file server, with separate directories for fetched files; yield its address."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "packed.jsonl.gz").write_bytes(gzip.compress(CONTENT))
    (tmp_path / "served" / "plain.jsonl").write_bytes(CONTENT)
    (tmp_path / "served" / "broken.jsonl.gz").write_bytes(gzip.compress(CONTENT)[:-9])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XFT_BENCHMARKS", str(tmp_path / "benchmarks"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(("name", "file", "place"), [
    ("humaneval", "packed.jsonl.gz", None), ("multipl-e/js", "plain.jsonl", "multipl-e/humaneval-js.jsonl"),
    ("ds1000", "packed.jsonl.gz", "ds1000/ds1000.jsonl")])
def test_what_is_fetched_is_found_by_its_name(server: str, name: str, file: str, place: str | None) -> None:
    sources = {name: Source(f"{server}/{file}", SHA256, place)}
    path, was_here = fetch(name, sources)
    assert not was_here and find_benchmark(name) == path and gzip.decompress(path.read_bytes()) == CONTENT
    packed = path.read_bytes()
    assert fetch(name, {name: Source(f"{server}/gone", SHA256, place)}) == (path, True)  # nothing is requested again
    assert path.read_bytes() == packed


@pytest.mark.parametrize(("file", "sha256", "message"), [
    ("packed.jsonl.gz", "0" * 64, "is not the known humaneval"), ("gone.jsonl.gz", SHA256, "File not found"),
    ("broken.jsonl.gz", SHA256, "not a complete gzip file")])
def test_nothing_is_kept_of_anything_else(server: str, file: str, sha256: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        fetch("humaneval", {"humaneval": Source(f"{server}/{file}", sha256)})
    assert not any((tmp_path / "cache").rglob("*.jsonl*"))


def test_a_file_of_the_users_own_is_left_alone(server: str, tmp_path: Path) -> None:
    own = tmp_path / "cache" / "evalplus" / "HumanEvalPlus-v0.1.10.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(DataError, match="is left unchanged"):
        fetch("humaneval", {"humaneval": Source(f"{server}/packed.jsonl.gz", SHA256)})
    assert own.read_text() == "mine" and list(own.parent.iterdir()) == [own]


def test_without_a_network_a_person_is_told_what_to_do(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"could not be fetched from http://127\.0\.0\.1:9/x: .*refused.* Download http"):
        fetch("humaneval", {"humaneval": Source("http://127.0.0.1:9/x", SHA256)})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="not fetched because HF_HUB_OFFLINE forbids downloads"):
        fetch("humaneval", {"humaneval": Source(f"{server}/packed.jsonl.gz", SHA256)})


def test_what_cannot_be_placed_or_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFT_BENCHMARKS", raising=False)
    with pytest.raises(DataError, match="XFT_BENCHMARKS, but that variable is not set"):
        fetch("ds1000")
    with pytest.raises(DataError, match=r"no known source for a benchmark 'apps'.*humaneval"):
        fetch("apps")


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="the shared data is not here")
def test_the_digests_are_those_of_the_released_files() -> None:
    files = {
        "humaneval": "HumanEvalPlus-v0.1.10.jsonl.gz", "mbpp": "MbppPlus-v0.2.0.jsonl.gz", "ds1000": "ds1000/ds1000.jsonl.gz"}
    for name, source in SOURCES.items():
        path = HUMANEVAL.parent / (files.get(name) or str(source.place))
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == source.sha256, name
