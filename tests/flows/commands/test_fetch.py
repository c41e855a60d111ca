"""``xft fetch`` lists the benchmarks, keeps the checked file, and says what it could not fetch."""

import gzip
from argparse import Namespace

import pytest

from flows.commands import fetch as command
from tests.xft_core.benchmarks.test_fetch import CONTENT, SHA256, server
from xft_core.benchmarks import fetch as library
from xft_core.benchmarks.fetch import SOURCES, Source
from xft_core.benchmarks.find import find_benchmark

__all__ = ["server"]


def test_the_list_names_every_benchmark(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(Namespace(benchmark=[])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(SOURCES)
    for name, source in SOURCES.items():
        assert any(line.split()[:2] == [name, "no"] and source.sha256 in line for line in lines), name


def test_one_that_fails_does_not_stop_the_others(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(library.SOURCES, "humaneval", Source(f"{server}/gone.jsonl.gz", SHA256, None))
    monkeypatch.setitem(library.SOURCES, "mbpp", Source(f"{server}/packed.jsonl.gz", SHA256, None))
    assert command.run(Namespace(benchmark=["humaneval", "mbpp", "mbpp"])) == 2
    shown = capsys.readouterr()
    assert "error: " in shown.err and "humaneval" in shown.err
    assert shown.out.count("mbpp: ") == 1 and gzip.decompress(find_benchmark("mbpp").read_bytes()) == CONTENT
    assert command.run(Namespace(benchmark=["mbpp"])) == 0 and "(already here)" in capsys.readouterr().out


def test_one_name_means_every_language() -> None:
    chosen = command._chosen(["multipl-e", "multipl-e/js"])
    assert len(chosen) == len(set(chosen)) > 1 and all(name.startswith("multipl-e/") for name in chosen)
