"""The programs in abuse/: each gives the right answer only if its attack succeeds, so none may pass."""

import ast
import hashlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import xft_core
from xft_core.benchmarks.benchmark import Verdict
from xft_core.benchmarks.evalplus.grading import EvalPlusGrader
from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.demo import DEMO_DIR
from xft_core.errors import SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox import bubblewrap

PROGRAMS = {path.stem: path for path in sorted(Path(__file__).with_name("abuse").glob("*.py"))}
# A few programs of every kind that end quickly; the slow test runs all.
QUICK = (
    "cheat_frame", "cheat_eq", "cheat_stat", "equal_number", "patched_digest", "verdict_to_every_descriptor",
    "imports_the_grader", "hunts_objects", "hunts_benchmark",
    "os_exit", "fork_bomb", "memory_at_once", "writes_outside", "posix_system",
    "holds_the_users_pipes", "memory_file", "session_keyring", "io_uring", "other_sockets", "writes_dev",
    "reads_secret", "connects", "orphans", "steps_back_for_a_child", "kills_everything", "large_output", "half_character")
PACKAGE = Path(xft_core.__file__).parent
RIGHT = "def f(x):\n    return x + 1\n"
PROBLEM = Problem("Own/0", "def f(x):\n", "f", "    return x + 1\n", [[1], [2]], [[5], [70]])
OTHER = Problem("Own/1", "def g(a):\n", "g", "    return sorted(a)\n", [[[3, 1]]], [[[2, 1, 0.5]]])
OTHER_RIGHT = "def g(a):\n    return sorted(a)\n"


def test_there_are_enough_and_each_says_what_it_does() -> None:
    assert len(PROGRAMS) >= 90 and set(QUICK) <= set(PROGRAMS)
    for path in PROGRAMS.values():
        assert ast.get_docstring(ast.parse(path.read_text())), path


class Outside:
    """Everything that must not change, be reached, or be left behind: files, servers, a secret, processes."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory.chmod(0o777)
        self.victim = directory / "victim"
        self.victim.write_text("private")
        self.victim.chmod(0o666)
        monkeypatch.setenv("XFT_TEST_SECRET", "token")
        # Appears in the environment of every process that the sandbox starts.
        self.mark = f"PYTHONHASHSEED={random.SystemRandom().randrange(10**6, 10**9)}"
        monkeypatch.setitem(bubblewrap.ENVIRONMENT, *self.mark.split("="))
        self.servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self.servers[1].bind(f"\0xft-test-{os.getpid()}")
        self.servers[1].listen()
        self.before = self.files()

    def program(self, name: str) -> str:
        """Return an abuse program with its targets filled in."""
        text = PROGRAMS[name].read_text()
        for word, value in (("VICTIM", self.victim), ("PID", os.getpid()), ("PACKAGE", PACKAGE),
                            ("PORT", self.servers[0].getsockname()[1])):
            text = text.replace(f"@{word}@", str(value))
        return text

    def files(self) -> dict[str, str]:
        """Return the names and digests of the files that the programs know."""
        found = [path for path in (*self.victim.parent.rglob("*"), *PACKAGE.rglob("*.py")) if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def processes(self) -> list[int]:
        """Return the IDs of live processes of our sandboxes, anywhere in the process tree."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def check(self) -> None:
        """Check that nothing has changed outside the sandbox."""
        deadline = time.monotonic() + 5
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == []
        assert self.files() == self.before
        for server in self.servers:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    place = Outside(tmp_path, monkeypatch)
    yield place
    for server in place.servers:
        server.close()


@pytest.fixture
def grader(outside: Outside) -> Iterator[EvalPlusGrader]:
    config = EvaluateConfig(min_time_limit=1, memory_limit_mb=2048)
    try:
        found = EvalPlusGrader(config, DEMO_DIR / "benchmark.jsonl")
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    yield found
    found.stop()


def contained(names: list[str], outside: Outside, grader: EvalPlusGrader) -> None:
    """Grade the programs, each followed by a right one, while another problem is graded in a loop."""
    beside: list[Verdict] = []
    done = threading.Event()

    def grade_beside() -> None:
        while not done.is_set():
            beside.extend(grader.grade(OTHER, [OTHER_RIGHT], alone=True))

    thread = threading.Thread(target=grade_beside)
    thread.start()
    try:
        verdicts = grader.grade(PROBLEM, [text for name in names for text in (outside.program(name), RIGHT)], alone=True)
    finally:
        done.set()
        thread.join()
    found = {name: verdict for name, verdict in zip(names, verdicts[::2], strict=True)}
    assert {name: verdict for name, verdict in found.items() if verdict.base not in ("fail", "timeout")} == {}
    assert all(verdict.detail for verdict in found.values())
    json.dumps([verdict.detail for verdict in found.values()], ensure_ascii=False).encode()
    assert all(verdict == Verdict("pass", "pass") for verdict in verdicts[1::2])
    assert beside and all(verdict == Verdict("pass", "pass") for verdict in beside)
    grader.stop()  # ends the judges' sandboxes, but no sample's
    outside.check()


def test_abuse_is_contained(outside: Outside, grader: EvalPlusGrader) -> None:
    contained(list(QUICK), outside, grader)


@pytest.mark.slow
def test_all_abuse_is_contained(outside: Outside, grader: EvalPlusGrader) -> None:
    contained([name for name in PROGRAMS if name not in QUICK], outside, grader)
