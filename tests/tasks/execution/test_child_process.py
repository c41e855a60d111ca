"""The child process: exit statuses, signals, log lines, and no processes or files left behind."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.execution import child_process, fork_server
from tasks.execution.child_process import StageFault, run_in_child
from tasks.stopping import RunStopped
from xft_core.errors import StageInterrupted, StageKilled, XftError
from xft_core.stages.configs import UpcycleStage

Script = Callable[[str], None]
SCRIPT = "tests.tasks.execution.script"


@pytest.fixture(autouse=True, params=["forked", "fresh"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start stages in both ways: as a fork and as a fresh process."""
    if request.param == "fresh":
        monkeypatch.setattr(fork_server, "start", lambda *_: None)
    else:
        monkeypatch.setattr(fork_server, "MODULES", ())
        monkeypatch.setattr(subprocess, "Popen", only_servers(subprocess.Popen))
    yield request.param


def only_servers(popen: Any) -> Any:
    """Return ``popen`` restricted to servers: it refuses to start a stage, which must be a fork."""
    def start(command: list[str], **options: Any) -> Any:
        assert "xft_core" not in command and SCRIPT not in command, "started afresh"
        return popen(command, **options)
    return start


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Let the child run this Python text instead of a stage."""
    def use(text: str) -> None:
        monkeypatch.setattr(
            child_process, "_command", lambda config, path: [sys.executable, "-P", "-m", SCRIPT, str(path), text])
    return use


@pytest.fixture
def config(tmp_path: Path) -> UpcycleStage:
    return UpcycleStage(output=tmp_path / "out", model="/no/such/model")


def run(config: UpcycleStage, stop: threading.Event | None = None) -> list[str]:
    lines: list[str] = []
    run_in_child(config, lines.append, stop or threading.Event(), threads=1)
    return lines


def is_alive(pid: int, seconds: float = 5) -> bool:
    """Return whether the process survives ``seconds``: on a busy machine, a killed process takes a moment to disappear."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        time.sleep(0.05)
    return True


def test_a_stage_sees_no_credentials(script: Script, config: UpcycleStage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "MLFLOW_TRACKING_PASSWORD",
                 "MLFLOW_TRACKING_URI", "XFT_SERVER_AUTH_STRING"):
        monkeypatch.setenv(name, "geheim")
    script("import os, sys; sys.stderr.write(f\"known: {[n for n, v in os.environ.items() if 'geheim' in v]}\")")
    assert run(config) == ["known: []"]


def test_lines_arrive_one_by_one_without_progress_bars(script: Script, config: UpcycleStage) -> None:
    script(r"""
import sys
sys.stderr.write("first\n\rloading 10%|# |\rloading 100%|##|\n\nstate\rsecond\r\n 50%|###   | 1/2 [00:01]\nlast, unended")
print("on stdout")
""")
    assert run(config) == ["first", "second", "last, unended"]


def test_the_stage_gets_its_configuration_and_threads(
    script: Script, config: UpcycleStage, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script("import json, os, sys; c = json.load(open(sys.argv[1])); "
           "print(c['model'], os.environ['OMP_NUM_THREADS'], file=sys.stderr)")
    assert run(config) == ["/no/such/model 1"]


def test_a_mistake_is_raised_with_the_stages_own_words(config: UpcycleStage) -> None:
    with pytest.raises(XftError, match="There is no model directory '/no/such/model'") as caught:
        run(config)  # the real command
    assert not caught.value.may_pass
    assert type(caught.value) is XftError


@pytest.mark.parametrize(("text", "kind", "message"), [
    ("import sys; print('error: memory is short\\nlower it', file=sys.stderr); sys.exit(75)", StageInterrupted,
     "memory is short\nlower it"),
    ("import os, signal, time; x = bytearray(300_000_000); time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)", StageKilled,
     r"SIGKILL\).* It had .* to 3\d\d\.\d MB.*To avoid this, lower upcycle.num_experts"),
    ("import sys; print('error: process 1 of 2 was killed', file=sys.stderr); sys.exit(137)", StageKilled, "process 1 of 2"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", StageInterrupted, "SIGSEGV"),
    ("raise ValueError('broken')", StageFault, r"exit status 1\): ValueError: broken"),
    ("import sys; sys.exit(2)", StageFault, "no output"),
])
def test_other_ends(script: Script, config: UpcycleStage, text: str, kind: type[XftError], message: str) -> None:
    script(text)
    with pytest.raises(kind, match=message) as caught:
        run(config)
    assert caught.value.may_pass == issubclass(kind, StageInterrupted)


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"])
print(os.getpid(), child.pid, file=sys.stderr, flush=True)
time.sleep(100)
"""


def test_stopping_leaves_no_process(
    script: Script, config: UpcycleStage, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_process, "GRACE_SECONDS", 0.5)
    script(STUBBORN)
    stop, lines = threading.Event(), []

    def note(line: str) -> None:
        lines.append(line)
        stop.set()

    started = time.monotonic()
    with pytest.raises(RunStopped):
        run_in_child(config, note, stop)
    assert time.monotonic() - started < 10
    for pid in map(int, lines[0].split()):
        assert not is_alive(pid)


def test_an_exception_while_waiting_leaves_no_process(
    script: Script, config: UpcycleStage, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_process, "GRACE_SECONDS", 0.5)
    script(STUBBORN)
    lines = []

    def interrupt(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_child(config, interrupt, threading.Event())
    for pid in map(int, lines[0].split()):
        assert not is_alive(pid)


def test_a_talkative_child_is_not_held_up(script: Script, config: UpcycleStage) -> None:
    script("import sys\nfor i in range(20000): print('line', i, 'x' * 50, file=sys.stderr)")
    lines = run(config)
    assert len(lines) == 20000
    assert lines[-1].startswith("line 19999")


def test_a_child_that_closes_stderr_is_waited_for(script: Script, config: UpcycleStage) -> None:
    script("import os, time; os.close(2); time.sleep(0.5); os._exit(0)")
    assert run(config) == []


def test_a_file_in_the_current_directory_shadows_nothing(
    config: UpcycleStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    assert os.getcwd() == str(tmp_path)
    with pytest.raises(XftError, match="There is no model directory"):
        run(config)


CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """Create a control group of 200 MB: the kernel sends SIGKILL to a process in it that takes more."""
    group = CGROUP / f"xft-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("200M")
    except OSError:
        pytest.skip("no memory control groups (version 1) to write to here")
    yield group
    group.rmdir()


def test_the_kernel_ending_it_for_want_of_memory_is_said_so(script: Script, config: UpcycleStage, small_memory: Path) -> None:
    script(f"""
import os, time
open({str(small_memory / "cgroup.procs")!r}, "w").write(str(os.getpid()))
taken = []
while True:
    taken.append(bytearray(b"x") * 10_000_000)
    time.sleep(0.05)
""")
    with pytest.raises(StageKilled, match=r"The kernel killed it because memory was full.* to [1-9]\d*\.\d [MG]B") as caught:
        run(config)
    assert " 0." not in str(caught.value)


TOO_MUCH = """
import sys, torch
from xft_core.stages import upcycle
from xft_core.__main__ import main
upcycle.run = lambda config, workspace: {ask}
sys.exit(main(["upcycle", sys.argv[1]]))
"""


@pytest.mark.parametrize("ask", ["torch.empty(1 << 50)", pytest.param("bytearray(1 << 60)", marks=pytest.mark.slow)])
def test_an_allocation_that_fails_is_a_message(script: Script, config: UpcycleStage, ask: str) -> None:
    """Real failed allocations, by torch and by Python itself."""
    script(TOO_MUCH.format(ask=ask))
    with pytest.raises(
            XftError, match=r"upcycle: the memory is too small.*To avoid this, lower upcycle\.num_experts") as caught:
        run(config.model_copy(update={"model": "demo:model"}))
    assert type(caught.value) is XftError and not caught.value.may_pass
    assert "Traceback" not in str(caught.value)
