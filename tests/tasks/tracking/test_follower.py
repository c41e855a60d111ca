import json
import threading
from pathlib import Path

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
