"""Processes that ``xft ui`` starts end with it, even when it is killed: real processes, some of which left its session."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.local import guard
from flows.local.processes import processes
from tests.flows.conftest import REPOSITORY

# A process that starts another one in a new session, as a worker does, and then waits.
PARENT = "import subprocess, sys, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
OWNER = f"""
import os, sys, time
from pathlib import Path
from flows.local.processes import processes
with processes(Path(sys.argv[1])) as running:
    running.start("Worker", [sys.executable, "-c", {PARENT!r}], dict(os.environ))
    print(running._owner, flush=True)
    time.sleep(600)
"""


def wait_until(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_ends_with_its_owner(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        mark = guard.mark(owner.stdout.readline().strip(), "Worker")
        wait_until(lambda: len(guard.marked(mark)) == 2)
        owner.send_signal(number)
    wait_until(lambda: not guard.marked(mark))


def test_a_process_that_outlives_its_killed_parent_is_ended_too(tmp_path: Path) -> None:
    with processes(tmp_path) as running:
        running.start("Worker", [sys.executable, "-c", PARENT], {})
        mark = guard.mark(running._owner, "Worker")
        wait_until(lambda: len(guard.marked(mark)) == 2)
        running._running["Worker"].kill()
        running._running["Worker"].wait()
        assert len(guard.marked(mark)) == 1
    assert not guard.marked(mark)


def test_what_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guard, "GRACE_SECONDS", 0.5)
    mark = guard.mark("owner", "stubborn")
    with subprocess.Popen([sys.executable, "-c", STUBBORN], env={guard.MARK: mark}) as process:
        time.sleep(0.3)
        guard.end(mark)
        assert process.wait(5) == -signal.SIGKILL
