import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.execution.compute_slots import compute_slot
from tasks.stopping import RunStopped

REPOSITORY = Path(__file__).parents[3]


def test_no_more_than_the_slots_at_once(tmp_path: Path) -> None:
    inside, most, lock, never = 0, 0, threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal inside, most
        with compute_slot(tmp_path, 2, never):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.3)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_who_waits_is_told_who_holds_the_slots(tmp_path: Path) -> None:
    told: list[str] = []
    never = threading.Event()

    def wait() -> None:
        with compute_slot(tmp_path, 1, never, "mix of other", told.append):
            pass

    with compute_slot(tmp_path, 1, never, "sft-moe of demo-4x3-xft-learned"):
        thread = threading.Thread(target=wait)
        thread.start()
        while not told:
            time.sleep(0.01)
    thread.join()
    assert told == ["sft-moe of demo-4x3-xft-learned"]


def test_a_killed_holder_gives_its_slot_back(tmp_path: Path) -> None:
    code = ("import threading, time; from pathlib import Path; from tasks.execution.compute_slots import compute_slot\n"
            f"with compute_slot(Path({str(tmp_path)!r}), 1, threading.Event()): print('held', flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waited = []
    threading.Timer(0.5, holder.kill).start()
    with compute_slot(tmp_path, 1, threading.Event(), on_wait=lambda _: waited.append(True)) as number:
        assert number == 0
    assert waited == [True]
    holder.wait()
    holder.stdout.close()


def test_waiting_ends_when_the_run_is_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    with compute_slot(tmp_path, 1, stop):
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(RunStopped), compute_slot(tmp_path, 1, stop):
            raise AssertionError("there was only one slot")
