"""Our rules against evalplus's own code: both judge the same outputs."""

import builtins
import ctypes
import math
from typing import Any

import evalplus.eval
import numpy
import pytest

from xft_core.benchmarks.evalplus.contained.comparison import FLOAT_ATOL, are_floats, is_right

POOL: list[Any] = [
    None, True, False, 0, 1, 2, -1, 0.0, 1.0, 1 + 1e-9, 1.0001, math.nan, math.inf, "", "1", "ab", [], (), [1], (1,), [1.0],
    (1.0,), [1.0000000001], [1, 1.0], [1.0, 2.0], (1.0, 2.0), [1, 2], [2, 1], {1, 2}, frozenset({1}), {"a": 1}, {"a": 1.0}, 1j,
    1 + 0j, numpy.float64(1), numpy.int64(1), numpy.array([1.0, 2.0]), ["a"], [[1.0]], [[1.0 + 1e-9]], b"1", range(2)]
RULES = [
    ("custom", "f"), ("mbpp", "are_equivalent"), ("mbpp", "sum_div"), ("mbpp", "surface_Area"), ("mbpp", "digit_distance_nums"),
    ("mbpp", "similar_elements"), ("mbpp", "check_str")]
ARGUMENTS = [3, 4]


class Cell:
    """The part of multiprocessing.Value that evalplus uses."""

    value = 0


def stock(dataset: str, entry_point: str, expected: Any, atol: float) -> list[bool]:
    """Return whether evalplus accepts each item of POOL, by its own code, running a program that returns them."""
    details = (ctypes.c_byte * len(POOL))()
    program = f"{entry_point} = lambda *_: next(__import__('builtins').outputs)"
    evalplus.eval.unsafe_execute(
        dataset, entry_point, program, [ARGUMENTS] * len(POOL), [expected] * len(POOL), [60.0] * len(POOL), atol, False, Cell(),
        details, Cell())
    return list(map(bool, details))


def ours(dataset: str, entry_point: str, expected: Any, atol: float) -> list[bool]:
    """Return the same by our rules, applied as the judge applies them."""
    found = []
    for output in POOL:
        try:
            found.append(is_right(dataset, entry_point, ARGUMENTS, output, expected, atol))
        except Exception:
            found.append(False)
        if atol == 0 and are_floats(expected):
            atol = FLOAT_ATOL
    return found


@pytest.mark.parametrize(("dataset", "entry_point"), RULES)
def test_the_same_as_evalplus(dataset: str, entry_point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evalplus.eval, "reliability_guard", lambda maximum_memory_bytes: None)
    right = 0
    for expected in [True, False] if entry_point == "check_str" else POOL:
        for atol in (0, 1e-6, 0.5):
            monkeypatch.setattr(builtins, "outputs", iter(POOL), raising=False)
            found = ours(dataset, entry_point, expected, atol)
            assert found == stock(dataset, entry_point, expected, atol), (expected, atol)
            right += sum(found)
    assert right > len(POOL)


def test_floats_are_what_evalplus_takes_for_floats() -> None:
    for value in [*POOL, numpy.array([1], dtype="f4"), numpy.array([1]), [1.0, 1], [True]]:
        assert are_floats(value) == evalplus.eval.is_floats(value)


def test_a_root_is_near_zero() -> None:
    assert is_right("humaneval", "find_zero", [[1, 2]], -0.5, None, 1e-4)
    assert is_right("humaneval", "find_zero", [[-6, 11, -6, 1]], 3.0, 1.0, 1e-4)  # a root other than the reference's
    assert not is_right("humaneval", "find_zero", [[1, 2]], 0.5, None, 1e-4)
    assert FLOAT_ATOL == 1e-6
