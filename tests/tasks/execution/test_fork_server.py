"""Stages as forks: what they inherit, what they do not, and that neither server nor stage outlives its owner."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.execution import child_process, fork_server
from tests.tasks.execution.test_child_process import SCRIPT, is_alive
from xft_core.errors import StageInterrupted
from xft_core.stages.configs import UpcycleStage

REPOSITORY = Path(__file__).parents[3]
ASK = """
import json, os, re, sys
ready = "transformers.trainer" in sys.modules
import torch, transformers.trainer
status = open("/proc/self/status").read()
print(json.dumps({
    "ready": ready, "environment": dict(os.environ), "threads": torch.get_num_threads(), "path": sys.path,
    "tasks": len(os.listdir("/proc/self/task")), "parent": os.getppid(), "leads": os.getsid(0) == os.getpid(),
    "cuda": torch.cuda._is_in_bad_fork(), "directory": os.getcwd(),
    "command": open("/proc/self/cmdline").read().rstrip(chr(0)).split(chr(0))[:4],
    "descriptors": sorted(
        os.path.basename(os.readlink(f"/proc/self/fd/{name}")).split(":")[0] for name in os.listdir("/proc/self/fd")[:-1]),
    "peak": int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024}), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def fresh_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fork_server.end()
    monkeypatch.setattr(fork_server, "MODULES", ())
    yield
    fork_server.end()


@pytest.fixture
def config(tmp_path: Path) -> UpcycleStage:
    return UpcycleStage(output=tmp_path / "out", model="/no/such/model")


def run(config: UpcycleStage, monkeypatch: pytest.MonkeyPatch, text: str, threads: int = 1) -> list[str]:
    monkeypatch.setattr(
        child_process, "_command", lambda config, path: [sys.executable, "-P", "-m", SCRIPT, str(path), text])
    lines: list[str] = []
    child_process.run_in_child(config, lines.append, threading.Event(), threads)
    return lines


def server_id() -> int:
    assert fork_server._server is not None
    return fork_server._server._process.pid


@pytest.mark.slow
def test_a_fork_is_what_a_fresh_process_would_be(
    config: UpcycleStage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    """With all of the server's imports: no inherited threads or CUDA, the same environment, and about the same memory."""
    monkeypatch.undo()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    monkeypatch.chdir(tmp_path)
    forked = json.loads(run(config, monkeypatch, ASK, threads=1)[-1])
    assert b"geheim" not in Path(f"/proc/{server_id()}/environ").read_bytes()
    assert len(os.listdir(f"/proc/{server_id()}/task")) == 1
    assert forked.pop("parent") == server_id()
    assert forked.pop("ready"), "it was started afresh"
    monkeypatch.setattr(fork_server, "start", lambda *_: None)
    fresh = json.loads(run(config, monkeypatch, ASK, threads=1)[-1])
    assert fresh.pop("parent") == os.getpid()
    assert not fresh.pop("ready")
    assert forked["threads"] == 1
    assert forked.pop("tasks") <= fresh.pop("tasks")
    assert forked.pop("peak") == pytest.approx(fresh.pop("peak"), rel=0.35)
    # In a fork, quiet_libraries() and imports have already set these.
    extra = {name: forked["environment"].pop(name) for name in set(forked["environment"]) - set(fresh["environment"])}
    assert set(extra) <= {"TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"}
    assert forked == fresh


@pytest.mark.slow
def test_a_server_that_died_between_stages_is_replaced(config: UpcycleStage, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, sys; print(os.getppid(), file=sys.stderr)"
    assert run(config, monkeypatch, text) == run(config, monkeypatch, text) == [str(server_id())]
    first = server_id()
    os.kill(first, signal.SIGKILL)
    assert not is_alive(first)
    assert run(config, monkeypatch, text) == [str(server_id())] != [str(first)]


def test_another_environment_or_other_code_is_another_server(
    config: UpcycleStage, monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "import os, sys; print(os.environ['OMP_NUM_THREADS'], file=sys.stderr)"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    servers = []
    for threads in (1, 2):
        assert run(config, monkeypatch, text, threads) == [str(threads)]
        servers.append(server_id())
    monkeypatch.setattr(fork_server, "_code", lambda: 0)
    run(config, monkeypatch, text, 2)
    assert len({*servers, server_id()}) == 3
    assert not any(is_alive(pid) for pid in servers)


def test_a_stage_whose_server_dies_is_interrupted(config: UpcycleStage, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), file=sys.stderr)
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(100)
"""
    lines: list[str] = []
    monkeypatch.setattr(
        child_process, "_command", lambda config, path: [sys.executable, "-P", "-m", SCRIPT, str(path), text])
    with pytest.raises(StageInterrupted, match="a signal ended its process"):
        child_process.run_in_child(config, lines.append, threading.Event(), 1)
    assert not is_alive(int(lines[0]))


def test_without_a_server_a_stage_starts_afresh(config: UpcycleStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "ROOM", "")
    monkeypatch.setattr(fork_server, "MODULES", ("tests.tasks.execution.ends_its_process",))
    for _ in range(2):
        assert run(config, monkeypatch, "import os, sys; print(os.getppid(), file=sys.stderr)") == [str(os.getpid())]


def test_two_at_once_share_the_server(config: UpcycleStage, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import os, sys, time; time.sleep(1); print(os.getppid(), file=sys.stderr)"
    monkeypatch.setattr(
        child_process, "_command", lambda config, path: [sys.executable, "-P", "-m", SCRIPT, str(path), text])
    lines: list[str] = []
    threads = [
        threading.Thread(target=child_process.run_in_child, args=(config, lines.append, threading.Event(), 1))
        for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines == [str(server_id())] * 2


OWNER = f"""
import sys, threading
from pathlib import Path
from tasks.execution import child_process, fork_server
from xft_core.stages.configs import UpcycleStage
fork_server.MODULES = ()
text = "import os, sys, time; print(os.getppid(), os.getpid(), file=sys.stderr); time.sleep(100)"
child_process._command = lambda config, path: [sys.executable, "-P", "-m", {SCRIPT!r}, str(path), text]
config = UpcycleStage(output=Path("/nowhere"), model="x")
child_process.run_in_child(config, lambda line: print(line, flush=True), threading.Event(), 1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_its_owner(number: signal.Signals) -> None:
    """With two owners at once, only the other owner's server and stage stay alive."""
    with (subprocess.Popen([sys.executable, "-c", OWNER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner,
          subprocess.Popen([sys.executable, "-c", OWNER], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as other):
        assert owner.stdout is not None and other.stdout is not None
        server, stage = map(int, owner.stdout.readline().split())
        others = [int(word) for word in other.stdout.readline().split()]
        owner.send_signal(number)
        assert not is_alive(stage, 20) and not is_alive(server, 20)
        time.sleep(0.2)
        assert all(Path(f"/proc/{pid}").exists() for pid in others)
        other.kill()
        assert not any(is_alive(pid, 20) for pid in others)
