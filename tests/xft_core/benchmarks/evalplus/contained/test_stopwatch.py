import os
import time
from pathlib import Path

import pytest

from xft_core.benchmarks.evalplus.contained.stopwatch import Stopwatch, open_schedstat


def test_waiting_for_a_processor_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "schedstat"
    path.write_text("5000000000 1000000000 7\n")
    descriptor = os.open(path, os.O_RDONLY)
    stopwatch = Stopwatch(descriptor)
    time.sleep(0.3)
    assert stopwatch.seconds() == pytest.approx(stopwatch.clock_seconds(), abs=0.05) and stopwatch.seconds() >= 0.3
    path.write_text("5000000000 1200000000 8\n")
    assert stopwatch.clock_seconds() - stopwatch.seconds() == pytest.approx(0.2, abs=0.05)
    os.close(descriptor)  # as if the process had ended
    assert stopwatch.clock_seconds() - stopwatch.seconds() == pytest.approx(0.2, abs=0.05)


def test_without_the_kernels_count_it_is_the_clock() -> None:
    stopwatch = Stopwatch(None)
    time.sleep(0.1)
    assert stopwatch.seconds() == pytest.approx(stopwatch.clock_seconds(), abs=0.05)


@pytest.mark.skipif(open_schedstat() is None, reason="this kernel does not count it")
def test_sleeping_is_counted_and_waiting_beside_others_is_not() -> None:
    stopwatch = Stopwatch(open_schedstat())
    time.sleep(0.5)
    assert stopwatch.seconds() > 0.4
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    others = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                pass
            os._exit(0)
        others.append(pid)
    try:
        before, ran, clock = stopwatch.seconds(), time.process_time(), time.monotonic()
        while time.monotonic() < clock + 1.5:
            pass
        assert stopwatch.seconds() - before == pytest.approx(time.process_time() - ran, abs=0.3)
        assert stopwatch.seconds() - before < 1.2
    finally:
        os.sched_setaffinity(0, cores)
        for pid in others:
            os.waitpid(pid, 0)
