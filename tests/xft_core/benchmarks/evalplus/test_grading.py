from collections.abc import Iterator
from typing import Any

import pytest

from tests.factories import shared_data
from xft_core.benchmarks.evalplus.grading import MOUNTS, Limits, grade
from xft_core.benchmarks.evalplus.kind import EvalPlus
from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.errors import DataError, SandboxError
from xft_core.sandbox import Sandbox, open_sandbox

HUMANEVAL = shared_data("benchmarks/HumanEvalPlus-v0.1.10.jsonl.gz")
LIMITS = Limits(1, 4, 2048)


def problem(solution: str, base: list[Any], plus: list[Any], task_id: str = "Own/0") -> Problem:
    return Problem(task_id, "def f(x):\n", "f", solution, base, plus)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        found = open_sandbox("bubblewrap", MOUNTS)
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    yield found
    found.stop.set()


def results(of: Problem, samples: list[str], sandbox: Sandbox) -> list[tuple[str, str, str]]:
    return [(verdict.base, verdict.plus, verdict.detail) for verdict in grade(of, samples, sandbox, LIMITS)]


def test_a_failure_says_which_input_and_why(sandbox: Sandbox) -> None:
    doubled = problem("    return [x, x]\n", [[1], ["a"]], [[2.5], [None]])
    assert results(doubled, [
        "def f(x): return [x] * 2", "def f(x): return (x, x)", "def f(x): return [x, x] if x != 2.5 else [2.5]",
        "def f(x): return 1 / 0", "def g(x): return x", "def f(x: return", "import time\ndef f(x): time.sleep(9)",
        "def f(x): return [x, x] if x else ['y' * 10**6]", "import os\ndef f(x): return os._exit(3)",
    ], sandbox) == [
        ("pass", "pass", ""),
        ("fail", "fail", "base: f(1): returned (1, 1); expected [1, 1]"),
        ("pass", "fail", "plus: f(2.5): returned [2.5]; expected [2.5, 2.5]"),
        ("fail", "fail", "base: f(1): raised ZeroDivisionError: division by zero; expected [1, 1]"),
        ("fail", "fail", "base: while it was defined: raised NameError: it has no 'f'"),
        ("fail", "fail", "base: while it was defined: raised SyntaxError: invalid syntax (<string>, line 1)"),
        ("fail", "fail", "base: f(1): timed out after 1 s"),
        ("pass", "fail", f"plus: f(None): returned ['{'y' * 47}...{'y' * 48}']; expected [None, None]"),
        ("timeout", "timeout", "base: f(1): its process ended"),
    ]


def test_each_suite_and_each_sample_begins_anew(sandbox: Sandbox) -> None:
    counts = "calls = []\ndef f(x):\n    calls.append(1)\n    return x if len(calls) < 3 else None"
    changes = "def f(x):\n    y = list(x)\n    x.clear()\n    return y"
    same = problem("    return x\n", [[[1]], [[2]]], [[[1]], [[2]]])
    assert [item[:2] for item in results(same, [counts, changes, counts, changes], sandbox)] == [("pass", "pass")] * 4


def test_equal_is_what_python_and_evalplus_call_equal(sandbox: Sandbox) -> None:
    third = problem("    return [x / 3, x / 6]\n", [[1.0]], [[2.0]])
    near = "def f(x): return [x / 3 + {0}, x / 6]"
    counted = problem("    return {c: x.count(c) for c in x}\n", [["aab"]], [["c"]])
    whole = problem("    return x\n", [[1], [True]], [[2]])
    assert [item[0] for item in results(third, [near.format(1e-9), near.format(1e-3), near.format(0) + "[:1]"], sandbox)] == [
        "pass", "fail", "fail"]
    assert [item[0] for item in results(counted, [
        "import collections\ndef f(x): return collections.Counter(x)",
        "import collections\ndef f(x): return collections.OrderedDict(sorted(collections.Counter(x).items())[::-1])",
        "import collections\ndef f(x): return collections.Counter(x).items()"], sandbox)] == ["pass", "pass", "fail"]
    assert [item[0] for item in results(whole, [
        "def f(x): return float(x)", "import numpy\ndef f(x): return numpy.int64(x)", "def f(x): return str(x)"], sandbox)] == [
        "pass", "pass", "fail"]


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="the shared benchmarks are not here")
def test_any_root_is_right_where_evalplus_lets_none_be(sandbox: Sandbox) -> None:
    find_zero = EvalPlus().load_problems(HUMANEVAL)[32]
    newton = find_zero.prompt + "    return 5.0\n"
    (right, wrong) = grade(
        find_zero, [find_zero.prompt + find_zero.canonical_solution, newton], sandbox, LIMITS)
    assert (right.base, right.plus, wrong.base) == ("pass", "pass", "fail")
    assert "expected a root" in wrong.detail


def test_a_reference_that_cannot_be_compared_is_refused(sandbox: Sandbox) -> None:
    for solution, reason in (("    return object()\n", "cannot be compared"), ("    return x[9]\n", "IndexError"),
                             ("    raise SystemExit\n", "SystemExit")):
        with pytest.raises(DataError, match=f"'Own/0'.*{reason}"):
            grade(problem(solution, [[[1]]], []), ["def f(x): return 1"], sandbox, LIMITS)
