import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.execution.compute_slots import Turn, compute_slot
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


def asked(locks: Path, turn: Turn, order: list[Turn]) -> threading.Thread:
    """Start a thread that waits for the only slot; return once it waits."""
    waits = threading.Event()

    def wait() -> None:
        with compute_slot(locks, 1, threading.Event(), on_wait=lambda _: waits.set(), turn=turn):
            order.append(turn)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(10)
    return thread


def test_a_free_slot_goes_to_the_run_that_began_first_and_to_its_stage_with_the_longest_way_to_the_end(tmp_path: Path) -> None:
    order: list[Turn] = []
    turns = [Turn(2.0, 9), Turn(1.0, 1), Turn(1.0, 5), Turn(1.5, 2)]
    with compute_slot(tmp_path, 1, threading.Event()):
        threads = [asked(tmp_path, turn, order) for turn in turns]
    for thread in threads:
        thread.join()
    assert order == [Turn(1.0, 5), Turn(1.0, 1), Turn(1.5, 2), Turn(2.0, 9)]


def test_equal_turns_are_served_as_they_asked(tmp_path: Path) -> None:
    order: list[Turn] = []
    with compute_slot(tmp_path, 1, threading.Event()):
        first = asked(tmp_path, Turn(1.0, 1), order)
        names = sorted(path.name for path in (tmp_path / "waiting").iterdir())
        second = asked(tmp_path, Turn(1.0, 1), order)
        assert sorted(path.name for path in (tmp_path / "waiting").iterdir())[0] == names[0]
    first.join()
    second.join()
    assert list((tmp_path / "waiting").iterdir()) == []


def test_who_was_killed_while_it_waited_holds_nobody_up(tmp_path: Path) -> None:
    code = ("import threading; from pathlib import Path; from tasks.execution.compute_slots import Turn, compute_slot\n"
            f"with compute_slot(Path({str(tmp_path)!r}), 1, threading.Event(), on_wait=lambda _: print('waits', flush=True), "
            "turn=Turn(1.0, 9)): pass")
    with compute_slot(tmp_path, 1, threading.Event()):
        waiting = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        waiting.kill()
        waiting.wait()
        waiting.stdout.close()
    with compute_slot(tmp_path, 1, threading.Event(), turn=Turn(2.0, 0)) as number:
        assert number == 0
    assert list((tmp_path / "waiting").iterdir()) == []
