"""Work shared by processes: results in order, failures raised in the caller, and no process left behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import active_children

import pytest

from xft_core.errors import DataError, StageKilled
from xft_core.runtime.shared_work import in_processes


def doubled(part: int) -> list[bytes] | None:
    if part == 5:
        raise ValueError
    return None if part == 3 else [str(2 * part).encode(), b""]


@pytest.mark.parametrize("processes", [1, 2, 3, pytest.param(11, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [0, 1, 3, 9])
def test_results_come_in_order_and_what_fails_comes_back(processes: int, number: int) -> None:
    shared = in_processes(lambda: iter(range(number)), doubled, processes)
    found = list(shared)
    back = {3, 5} if processes > 1 else set(range(number))
    assert found == [([], part) if part in back else ([str(2 * part).encode(), b""], None) for part in range(number)]
    assert not active_children()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_keeps_parts_from_being_read_is_raised_once_those_before_it_are_done(processes: int) -> None:
    def parts() -> Iterator[int]:
        yield from range(4)
        raise DataError("not JSON")

    seen = []
    with pytest.raises(DataError, match="not JSON"):
        for buffers, part in in_processes(parts, doubled, processes):
            seen.append((buffers, part))
    assert len(seen) == 4 and not active_children()


def test_what_only_another_process_cannot_read_is_read_here() -> None:
    parent = os.getpid()

    def parts() -> Iterator[int]:
        yield from range(4)
        if os.getpid() != parent:
            raise MemoryError
        yield from range(4, 8)

    shared = in_processes(parts, doubled, 2)
    found = list(shared)
    assert [int(buffers[0]) // 2 if part is None else part for buffers, part in found] == [*range(8)]


def test_a_killed_process_is_said_and_leaves_none() -> None:
    def killed(part: int) -> list[bytes]:
        if part == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return [b"done"]

    shared = in_processes(lambda: iter(range(100)), killed, 2)
    with pytest.raises(StageKilled, match="OMP_NUM_THREADS=1"):
        list(shared)
    assert not active_children()


def test_no_process_is_left_when_the_caller_stops() -> None:
    shared = in_processes(lambda: iter(range(100)), doubled, 2)
    with closing(shared):
        assert next(shared) == ([b"0", b""], None) and len(active_children()) == 2
    assert not active_children()
