"""DS-1000's grader in a real sandbox, with this package's libraries: whether its verdicts can be trusted."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xft_core.benchmarks.ds1000.problems import CONTEXT, NO_LOOP, RIGHT, row
from xft_core.benchmarks.ds1000 import grading
from xft_core.benchmarks.ds1000.environment import find_environment
from xft_core.benchmarks.ds1000.grading import DS1000Grader
from xft_core.benchmarks.ds1000.problems import Problem, parse_problem
from xft_core.errors import SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import open_sandbox
from xft_core.stages.configs import EvaluateStage
from xft_core.stages.evaluate import grade_all, scores
from xft_core.stages.run import run_stage

try:
    open_sandbox("bubblewrap")
    NO_SANDBOX = ""
except SandboxError as error:
    NO_SANDBOX = str(error)
pytestmark = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX or "-")

PROBLEM = parse_problem(row(1), "here")


@pytest.fixture(scope="module")
def grader() -> Iterator[DS1000Grader]:
    config = EvaluateConfig(ds1000_environment="current", memory_limit_mb=2048)
    grader = DS1000Grader(config, find_environment("current"))
    yield grader
    grader.stop()


def statuses(grader: DS1000Grader, samples: list[str], problem: Problem = PROBLEM) -> list[str]:
    verdicts = grader.grade(problem, samples, alone=True)
    assert all(verdict.base == verdict.plus for verdict in verdicts)
    return [verdict.base for verdict in verdicts]


def test_right_and_wrong_answers_are_told_apart(grader: DS1000Grader) -> None:
    samples = [RIGHT, "result = a", "result = np.sort(a", "", "import no_such_module", RIGHT]
    verdicts = grader.grade(PROBLEM, samples)
    assert [verdict.base for verdict in verdicts] == ["pass", "fail", "fail", "fail", "fail", "pass"]
    assert "not equal" in verdicts[1].detail and "SyntaxError" in verdicts[2].detail


def test_what_a_program_must_not_contain_is_looked_for(grader: DS1000Grader) -> None:
    problem = parse_problem(row(2, code_context=CONTEXT + NO_LOOP), "here")
    assert statuses(grader, [RIGHT, "result = np.array(sorted(v for v in a))"], problem) == ["pass", "fail"]


@pytest.mark.parametrize("sample", [
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "raise SystemExit",
    "raise KeyboardInterrupt",
    "import os\nif os.fork():\n    os._exit(0)\nos._exit(0)",
    "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'pass')\n    except OSError: pass\nos._exit(0)",
    "import os\nfor fd in range(64):\n    try: open(f'/proc/{os.getppid()}/fd/{fd}', 'w').write('pass')\n"
    "    except OSError: pass\nos._exit(0)",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "import ctypes\nctypes.string_at(0)",
    "print('{\"sample\": 0, \"status\": \"pass\", \"detail\": \"\"}', flush=True)\nimport os\nos._exit(0)",
    "np.testing.assert_array_equal = lambda *given, **named: None\nresult = 0",
    "np.testing.assert_array_equal.__code__ = (lambda *given, **named: None).__code__\nresult = 0",
    "import sys\nsys._getframe(3).f_globals['exec_test'].__code__ = (lambda result, ans: 1).__code__\nresult = 0",
    "import numpy.testing._private.utils as u\nu.assert_array_compare = lambda *given, **named: None\nresult = 0",
    "import numpy.testing._private.utils as u\nu.assert_array_compare.__code__ = (lambda *a, **b: None).__code__\nresult = 0",
    "import sys, os\nsys.setprofile(lambda frame, *_: os._exit(0) if 'assert' in frame.f_code.co_name else None)\nresult = 0",
    "import builtins\nbuiltins.__build_class__ = builtins.print = None\nresult = 0",
    "import sys\nsys._getframe(3).f_globals['exec_test'] = lambda result, ans: 1\nresult = 0",
    "result = list(range(10 ** 10))",
    "result = np.ones(10 ** 10)",
    "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\nresult = np.sort(a)",
    "open('/usr/x', 'w')\nresult = np.sort(a)",
])
def test_a_program_that_does_not_solve_the_problem_does_not_pass(grader: DS1000Grader, sample: str) -> None:
    assert statuses(grader, [sample, RIGHT]) == ["fail", "pass"]


def test_an_endless_program_is_stopped_and_leaves_nothing(grader: DS1000Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "SAMPLE_SECONDS", 2.0)
    spawn = ("import subprocess, sys\nopen('/tmp/left', 'w').close()\nsubprocess.Popen([sys.executable, '-c', "
             "'import os, time; os.setsid(); time.sleep(60)'])\n")
    count = ("import os\nassert not os.path.exists('/tmp/left') and os.listdir('.') == []\n"
             "assert sum(name.isdigit() for name in os.listdir('/proc')) < 6\n")
    swallow = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    assert statuses(grader, [spawn + "while True: pass", swallow, spawn + RIGHT, count + RIGHT]) == [
        "timeout", "timeout", "pass", "pass"]


def test_chance_is_the_same_every_time(grader: DS1000Grader) -> None:
    import numpy as np

    np.random.seed(0)
    drawn = f"import random\nassert (np.random.rand(), random.random()) == ({np.random.rand()!r}, 0.8444218515250481)\n"
    sample = drawn + RIGHT
    assert statuses(grader, [sample, sample]) == ["pass", "pass"]


def test_who_kills_the_grader_is_graded_again_alone_and_has_failed(grader: DS1000Grader, tmp_path: Path) -> None:
    killer = "import os\nos.kill(os.getppid(), 9)\nresult = np.sort(a)"
    assert statuses(grader, [RIGHT, killer, killer, RIGHT]) == ["pass", *["infrastructure_error"] * 2, "pass"]
    own = DS1000Grader(EvaluateConfig(ds1000_environment="current", memory_limit_mb=2048), find_environment("current"))
    (verdicts,) = grade_all([PROBLEM], {PROBLEM.task_id: [killer, RIGHT]}, own, 1, tmp_path / "graded").values()
    assert [verdict.base for verdict in verdicts] == ["fail", "pass"]
    assert verdicts[0].detail.startswith("it cannot be graded: the process that graded it ended; and again, alone: ")


def test_a_library_that_is_not_there_is_no_failure_of_its_problems(grader: DS1000Grader, tmp_path: Path) -> None:
    """It is a failure of an answer that imports the library although the problem does not need it."""
    needs = parse_problem(row(3, library="Tensorflow", code_context="import tensorflow\n" + CONTEXT), "here")
    assert "tensorflow" in (grader.ungradable(needs) or "") and grader.ungradable(PROBLEM) is None
    assert statuses(grader, ["import tensorflow\n" + RIGHT, "raise ImportError(\"No module named 'tensorflow'\")"]) == [
        "fail", "fail"]
    own = DS1000Grader(EvaluateConfig(ds1000_environment="current", memory_limit_mb=2048), find_environment("current"))
    found = grade_all(
        [PROBLEM, needs], {PROBLEM.task_id: [RIGHT], needs.task_id: ["import os\nos._exit(0)"]}, own, 1, tmp_path / "graded")
    assert [verdict.base for (verdict,) in found.values()] == ["pass", "infrastructure_error"]
    assert scores(list(found.values()), [1]).plus_pass_at == {1: 1.0}


def test_the_stage_counts_by_library_and_perturbation(tmp_path: Path) -> None:
    rows = [row(0), row(1, perturbation="Surface"), row(2, library="Other")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    answers = [(0, RIGHT), (0, "result = a"), (1, "result = a"), (1, "result = 1"), (2, RIGHT), (2, RIGHT)]
    (tmp_path / "samples.jsonl").write_text("".join(
        json.dumps({"task_id": f"DS-1000/{number}", "solution": text}) + "\n" for number, text in answers))
    stage = EvaluateStage(
        output=tmp_path / "out", benchmark=str(tmp_path / "own.jsonl"), samples=tmp_path / "samples.jsonl",
        evaluate=EvaluateConfig(ds1000_environment="current", memory_limit_mb=2048, workers=1, k=[2]))
    manifest = run_stage(stage).manifest
    assert manifest.config["versions"]["environment"] == "current"
    expected = {
        "plus_pass_at_1": 1.5 / 3, "plus_pass_at_2": 2 / 3, "pass_at_1/own": 0.25, "pass_at_1/other": 1.0,
        "pass_at_1/origin": 0.75, "pass_at_1/surface": 0.0, "infrastructure_errors": 0}
    assert {name: manifest.metrics[name] for name in expected} == pytest.approx(expected)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["groups"]["library"]["Own"] == {"problems": 2, "pass_at_1": 0.25}
    assert results["ds1000"]["packages"]["numpy"] and results["ds1000"]["environment"] == "current"
    assert results["problems"][1]["groups"] == {"library": "Own", "perturbation": "Surface"}


def test_unsafe_grades_too_and_ends_only_its_own_processes(grader: DS1000Grader) -> None:
    unsafe = DS1000Grader(
        EvaluateConfig(ds1000_environment="current", sandbox="unsafe"), find_environment("current"))
    left = Path("/tmp") / f"not-of-the-sample-{os.getpid()}"
    left.touch()
    try:
        assert statuses(unsafe, [RIGHT, "result = a", "import os\nos._exit(0)"]) == ["pass", "fail", "fail"]
        assert left.exists()
    finally:
        unsafe.stop()
        left.unlink()
