import os
import select
import subprocess
import sys
import time

import pytest

from xft_core.sandbox.processor_time import RunningTime, Time, is_overloaded, time_of

COMPUTES = """
import os, sys, time
def compute(seconds):
    while time.process_time() < seconds: pass
if os.fork() == 0:
    compute(0.5)
    os._exit(0)
os.wait()
if os.fork() == 0:
    compute(0.5)
    print("done", flush=True)
    time.sleep(60)
compute(0.2)
time.sleep(60)
"""


def test_the_time_of_all_below_counts_also_of_those_that_have_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", COMPUTES], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"done\n"
            deadline = time.monotonic() + 60
            while time_of(process.pid).running < 1.15 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert 1.15 <= time_of(process.pid).running < 2
        finally:
            os.killpg(process.pid, 9)
    assert time_of(process.pid) == Time(0, None)


UNSEEN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(3):
    child = os.fork()
    if child == 0:
        while time.process_time() < 0.5: pass
        os._exit(0)
    try: os.waitpid(child, 0)
    except ChildProcessError: pass
print("done", flush=True)
time.sleep(60)
"""


def test_children_that_nobody_waits_for_count_as_far_as_they_were_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", UNSEEN], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            running = RunningTime(process.pid)
            while not select.select([process.stdout], [], [], 0.02)[0]:
                running.seconds()
            assert running.seconds() > 1.2 > 0.5 > time_of(process.pid).running
        finally:
            os.killpg(process.pid, 9)


def test_overloaded_is_who_waits_for_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_overloaded(Time(1, 9), 10) and not is_overloaded(Time(9, 1), 10) and not is_overloaded(Time(0, 0), 10)
    for load, overloaded in ((0.5, False), (1000, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        assert is_overloaded(Time(1, None), 10) == overloaded
