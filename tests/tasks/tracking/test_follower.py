import json
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.tracking.follower import CurveFile, Follower, Points
from xft_core.store.curves import MetricsLog


def steps(points: Points) -> list[int]:
    return [point["step"] for point in points]


def test_every_point_once_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    curve = CurveFile(path)
    assert curve.new_points() == []
    log = MetricsLog(path)
    log.log(1, {"loss": 3.0})
    log.log(2, {"loss": 2.0})
    assert steps(curve.new_points()) == [1, 2]
    half = json.dumps({"step": 3, "time": 1.0, "metrics": {"loss": 1.0}})
    with path.open("a") as stream:
        stream.write(half[:10])
    assert curve.new_points() == []
    with path.open("a") as stream:
        stream.write(half[10:] + "\nnot json\n[1]\n")
    assert steps(curve.new_points()) == [3]
    assert curve.new_points() == []


def test_a_file_cut_back_by_a_resume_is_read_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    curve = CurveFile(log.path)
    for step in range(1, 8):
        log.log(step, {"loss": 1.0})
    assert len(curve.new_points()) == 7
    log.forget_after(4)
    log.log(5, {"loss": 1.0})
    assert steps(curve.new_points()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("more", [1, 3, 40])
def test_a_file_that_outgrew_the_one_before_it_is_read_from_its_start(tmp_path: Path, more: int) -> None:
    """A file system may give the new file the old one's inode number: here it is the same file, with other content."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    curve = CurveFile(log.path)
    for step in (1, 2):
        log.log(step, {"loss": 1.0})
    assert steps(curve.new_points()) == [1, 2]
    inode = log.path.stat().st_ino
    log.path.write_bytes(b"")
    for step in range(1, 2 + more):
        log.log(step, {"loss": 1 / 3, "held_out_nll": 2 / 3})
    assert log.path.stat().st_ino == inode
    assert steps(curve.new_points()) == list(range(1, 2 + more))


@given(st.lists(st.one_of(
    st.tuples(st.just("log"), st.integers(1, 3)), st.tuples(st.just("resume"), st.integers(0, 6)),
    st.tuples(st.just("rewrite"), st.integers(1, 9)), st.just(("poll", 0))), max_size=25))
def test_every_point_that_the_file_ends_with_was_read(events: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        log = MetricsLog(Path(directory) / "metrics.jsonl")
        curve, read, step = CurveFile(log.path), list[int](), 0
        for number, (event, value) in enumerate([*events, ("poll", 0)]):
            if event == "poll":
                read += steps(curve.new_points())
            elif event == "resume":
                step = min(step, value)
                log.forget_after(step)
            else:
                if event == "rewrite":  # in place: the inode number stays
                    log.path.write_bytes(b"")
                    step = 0
                for _ in range(value):
                    step += 1
                    log.log(step, {"loss": 1 / (number + step)})
        assert set(range(1, step + 1)) <= set(read)


def test_what_is_not_taken_is_offered_again_in_order(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    away, taken, refused = threading.Event(), [], threading.Event()
    away.set()

    def deliver(points: Points) -> bool:
        if away.is_set():
            refused.set()
            return False
        taken.extend(steps(points))
        return True

    with Follower(log.path, deliver, poll_seconds=0.02):
        log.log(1, {"loss": 1.0})
        assert refused.wait(5)
        log.log(2, {"loss": 1.0})
        away.clear()
    assert taken == [1, 2]
