import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.factories import shared_data
from xft_core.benchmarks.benchmark import AnyProblem
from xft_core.benchmarks.evalplus import grading
from xft_core.benchmarks.evalplus.benchmark import EvalPlus
from xft_core.benchmarks.evalplus.grading import MOUNTS, EvalPlusGrader, Judges, Limits, grade
from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.demo import DEMO_DIR
from xft_core.errors import DataError, SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import Sandbox, open_sandbox
from xft_core.stages.evaluate import grade_all

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


@pytest.fixture(scope="module")
def judges(sandbox: Sandbox) -> Iterator[Judges]:
    found = Judges(sandbox, LIMITS)
    yield found
    found.stop()


@contextmanager
def judges_under(limits: Limits, sandbox: Sandbox) -> Iterator[Judges]:
    found = Judges(replace(sandbox, stop=threading.Event()), limits)
    yield found
    found.stop()


def results(of: Problem, samples: list[str], judges: Judges) -> list[tuple[str, str, str]]:
    return [(verdict.base, verdict.plus, verdict.detail) for verdict in grade(of, samples, judges, alone=True)]


def test_a_failure_says_which_input_and_why(judges: Judges) -> None:
    doubled = problem("    return [x, x]\n", [[1], ["a"]], [[2.5], [None]])
    assert results(doubled, [
        "def f(x): return [x] * 2", "def f(x): return (x, x)", "def f(x): return [x, x] if x != 2.5 else [2.5]",
        "def f(x): return 1 / 0", "def g(x): return x", "def f(x: return", "import time\ndef f(x): time.sleep(9)",
        "def f(x): return [x, x] if x else ['y' * 10**6]", "import os\ndef f(x): return os._exit(3)",
    ], judges) == [
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


TELLS_TWO_VALUES = """
import sys
def f(x):
    frame = sys._getframe()
    while frame.f_code.co_name != "main":
        frame = frame.f_back
    frame.f_globals["written"] = lambda value: b"false"
    return True
"""


def test_a_sample_gives_one_value_for_an_input(judges: Judges) -> None:
    """A request for the value would tell a sample that its digest was wrong: of True and False, the other one is right."""
    parity = problem("    return x % 2 == 1\n", [[1], [2], [3], [4]], [[6], [7]])
    assert results(parity, [TELLS_TWO_VALUES, "def f(x): return x % 2 == 1"], judges) == [
        ("fail", "fail", "base: f(1): returned False; expected True"), ("pass", "pass", "")]


def test_a_value_is_right_that_has_another_digest_here(judges: Judges) -> None:
    """numpy's half precision is returned in double precision."""
    halves = problem("    return [x / 2, x / 4]\n", [[1], [3]], [[5]])
    assert results(halves, ["import numpy\ndef f(x): return [numpy.float16(x / 2), numpy.float16(x / 4)]"], judges) == [
        ("pass", "pass", "")]


SLOW_TO_READ = {
    "__iter__": """
class L(list):
    def __iter__(self):
        time.sleep(SECONDS)
        return list.__iter__(self)
def f(x): return L(x)
""",
    "items": """
from collections.abc import Mapping
class M(Mapping):
    def __getitem__(self, key): raise KeyError
    def __iter__(self): return iter(())
    def __len__(self): return 0
    def items(self):
        time.sleep(SECONDS)
        return []
def f(x): return M()
""",
    "__str__": """
class E(Exception):
    def __str__(self):
        time.sleep(SECONDS)
        return ""
def f(x): raise E
"""}


@pytest.mark.parametrize(("name", "body", "status"), [
    ("__iter__", "    return x\n", "pass"), ("items", "    return {}\n", "pass"), ("__str__", "    return x\n", "fail")])
def test_reading_the_answer_is_part_of_its_time(judges: Judges, name: str, body: str, status: str) -> None:
    """This includes any code of the sample that runs when its answer is read."""
    program = "import time\n" + SLOW_TO_READ[name]
    slow, quick = results(
        problem(body, [[[1]]], []), [program.replace("SECONDS", seconds) for seconds in ("1.5", "0.2")], judges)
    assert slow == ("fail", "fail", "base: f([1]): timed out after 1 s")
    assert quick[0] == status and "timed out" not in quick[2]


FORGE = """
import sys
sys.modules["xft_core.benchmarks.evalplus.contained.values"].encode = lambda value: {0}
def f(x): return 0
"""
MANY_DEQUES = """b'["list"' + b', ["deque"]' * 2_900_000 + b"]" """  # eleven bytes each, but hundreds in memory
# Keys with different hashes that collide in a hash table.
SAME_BITS = """b'["set"' + b"".join(b", %d" % (n << 40) for n in range(100_000)) + b"]" """


def test_a_value_that_takes_the_judge_down_is_the_samples_failure(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge continues: only the fork that read the value is lost."""
    samples = [FORGE.format(MANY_DEQUES), FORGE.format(SAME_BITS), "def f(x): return x"]
    with judges_under(Limits(1, 4, 700), sandbox) as judges:
        verdicts = grade(problem("    return x\n", [[1]], []), samples, judges, alone=True)
    assert [verdict.base for verdict in verdicts] == ["fail", "fail", "pass"], verdicts


def test_processor_time_counts_of_all_processes(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process sleeps, within its limit, while others compute."""
    program = """
import posix, time
for _ in range(4):
    if posix.fork() == 0:
        while True: pass
def f(x):
    time.sleep(25)
    return x
"""
    monkeypatch.setattr(grading, "OWN_PROCESSOR_SECONDS", -30)  # of 32 in total
    with judges_under(Limits(30, 4, 2048), sandbox) as judges:
        (verdict,) = grade(problem("    return x\n", [[1]], []), [program], judges, alone=True)
    assert verdict.base == "timeout" and "of processor time that all inputs have" in verdict.detail


def test_what_is_late_on_an_overloaded_machine_is_graded_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        grader = EvalPlusGrader(EvaluateConfig(min_time_limit=1, memory_limit_mb=2048), DEMO_DIR / "benchmark.jsonl")
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    monkeypatch.setattr(grading, "is_overloaded", lambda time, seconds: True)
    slow, of = "import time\ndef f(x): time.sleep(9)", problem("    return x\n", [[1]], [])
    samples = [slow, "def f(x): return x", "def f(x): return 0"]
    first = [verdict.base for verdict in grader.grade(of, samples)]
    assert first == ["infrastructure_error", "pass", "fail"]
    assert "its time was over while this machine was overloaded" in grader.grade(of, [slow])[0].detail
    (verdicts,) = grade_all([of], {of.task_id: samples}, grader, 1, tmp_path / "graded").values()
    assert [verdict.base for verdict in verdicts] == ["fail", "pass", "fail"]
    assert verdicts[0].detail == "base: f(1): timed out after 1 s"


def test_programs_of_the_sandbox_find_their_modules_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if Python is told not to write bytecode, as in many containers."""
    copy = tmp_path / "contained"
    copy.mkdir()
    for path in grading.CONTAINED.glob("*.py"):
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(grading, "CONTAINED", copy)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        EvalPlusGrader(EvaluateConfig(), DEMO_DIR / "benchmark.jsonl")
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    for path in copy.glob("*.py"):
        assert Path(importlib.util.cache_from_source(str(path))).is_file(), path.name


def test_problems_share_a_host_and_nothing_else(sandbox: Sandbox) -> None:
    """One problem's reference may change its process without affecting other problems, and a lost host is replaced."""
    leaves = problem("    import builtins\n    builtins.left = True\n    return x\n", [[1]], [])
    sums = problem("    import builtins\n    return x if hasattr(builtins, 'left') else x + 1\n", [[1]], [[2]])
    with judges_under(LIMITS, sandbox) as judges:
        for _ in range(2):
            assert [item[0] for item in results(leaves, ["def f(x): return x"], judges)] == ["pass"]
            assert [item[:2] for item in results(sums, ["def f(x): return x + 1"], judges)] == [("pass", "pass")]
        host = judges.take()
        judges.give_back(host)
        assert judges.take() is host
        host.close()
        judges.give_back(host)
        assert [item[0] for item in results(sums, ["def f(x): return x + 1"], judges)] == ["pass"]
        kept = judges.take()
        judges.give_back(kept)
        assert kept is not host and kept.is_alive()
    assert not kept.is_alive()


@pytest.mark.slow
def test_many_sessions_do_not_starve_a_neighbour(judges: Judges, tmp_path: Path) -> None:
    sessions = """
import posix
for _ in range(58):
    try:
        if posix.fork() == 0:
            posix.setsid()
            while True: pass
    except OSError: break
def f(x):
    while True: pass
"""
    heavy = """
import time
def f(x):
    started = time.process_time()
    while time.process_time() < started + 0.8: pass
    return x
"""
    of = [problem("    return x\n", [[1]], [], task_id) for task_id in ("Own/bad", "Own/right")]
    grader = EvalPlusGrader(EvaluateConfig(min_time_limit=2, memory_limit_mb=2048), DEMO_DIR / "benchmark.jsonl")
    verdicts = grade_all(
        list[AnyProblem](of), {"Own/bad": [sessions] * 3, "Own/right": [heavy] * 6}, grader, 2, tmp_path / "graded")
    assert [verdict.base for verdict in verdicts["Own/right"]] == ["pass"] * 6
    assert "pass" not in [verdict.base for verdict in verdicts["Own/bad"]]


def test_each_suite_and_each_sample_begins_anew(judges: Judges) -> None:
    counts = "calls = []\ndef f(x):\n    calls.append(1)\n    return x if len(calls) < 3 else None"
    changes = "def f(x):\n    y = list(x)\n    x.clear()\n    return y"
    same = problem("    return x\n", [[[1]], [[2]]], [[[1]], [[2]]])
    assert [item[:2] for item in results(same, [counts, changes, counts, changes], judges)] == [("pass", "pass")] * 4


def test_equal_is_what_python_and_evalplus_call_equal(judges: Judges) -> None:
    third = problem("    return [x / 3, x / 6]\n", [[1.0]], [[2.0]])
    near = "def f(x): return [x / 3 + {0}, x / 6]"
    counted = problem("    return {c: x.count(c) for c in x}\n", [["aab"]], [["c"]])
    whole = problem("    return x\n", [[1], [True]], [[2]])
    assert [item[0] for item in results(third, [near.format(1e-9), near.format(1e-3), near.format(0) + "[:1]"], judges)] == [
        "pass", "fail", "fail"]
    assert [item[0] for item in results(counted, [
        "import collections\ndef f(x): return collections.Counter(x)",
        "import collections\ndef f(x): return collections.OrderedDict(sorted(collections.Counter(x).items())[::-1])",
        "import collections\ndef f(x): return collections.Counter(x).items()"], judges)] == ["pass", "pass", "fail"]
    assert [item[0] for item in results(whole, [
        "def f(x): return float(x)", "import numpy\ndef f(x): return numpy.int64(x)", "def f(x): return str(x)"], judges)] == [
        "pass", "pass", "fail"]


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="the shared benchmarks are not here")
def test_any_root_is_right_where_evalplus_lets_none_be(judges: Judges) -> None:
    find_zero = EvalPlus().load_problems(HUMANEVAL)[32]
    newton = find_zero.prompt + "    return 5.0\n"
    (right, wrong) = grade(
        find_zero, [find_zero.prompt + find_zero.canonical_solution, newton], judges)
    assert (right.base, right.plus, wrong.base) == ("pass", "pass", "fail")
    assert "expected a root" in wrong.detail


def test_a_reference_that_cannot_be_compared_is_refused(judges: Judges) -> None:
    for solution, reason in (("    return object()\n", "cannot be compared"), ("    return x[9]\n", "IndexError"),
                             ("    raise SystemExit\n", "SystemExit")):
        with pytest.raises(DataError, match=f"'Own/0'.*{reason}"):
            grade(problem(solution, [[[1]]], []), ["def f(x): return 1"], judges)
