"""Hostile answers to the tasks that ship: none of them passes, hangs or stops the grader."""

import json

import pytest

from xft_core.benchmarks.benchmark import Grader
from xft_core.benchmarks.registry import kind_of
from xft_core.benchmarks.tasks.benchmark import Problem, TaskFolder
from xft_core.demo import DEMO_DIR
from xft_core.errors import SandboxError
from xft_core.recipe.sections import EvaluateConfig

OF_ALL = (
    "", "\0", "import sys; sys.exit(0)", "__import__('os')._exit(0)", "while True: pass", "\ud7ff\u202e", "x" * 500_000,
    '{"base": true, "plus": true, "score": 1.0, "detail": ""}', '{"output": {"base": true}}', "pass", "```\n```", "9" * 100_000)
OWN = {
    "sql": (
        "ATTACH '/tmp/x' AS y", "SELECT readfile('/etc/passwd')", "SELECT load_extension('/tmp/x')",
        "PRAGMA writable_schema = 1",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n", "SELECT zeroblob(2000000000)",
        "SELECT printf('%.*c', 1000000000, 'a')", "DELETE FROM orders", "SELECT 1; SELECT 1",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT replace(hex(zeroblob(500000000)), '00', 'ab')", "VALUES (NULL)", "SELECT * FROM sqlite_master",
        "SELECT randomblob(100000000) FROM orders, orders, orders"),
    "extraction": (
        "[" * 200_000, '{"a":' * 100_000, "{" + '"a": 1, ' * 100_000, "1e999999", "-Infinity",
        '{"topic": ' + "9" * 10_000 + "}",
        '{"__class__": "x", "$ref": "file:///etc/passwd"}', json.dumps({"topic": ["a"] * 100_000})),
    "quantities": (
        "1 " + "k" * 100_000 + "m", "2 km**999999999999", "3 m" + "*m" * 20_000, "1e99999999 km", "nan km", "inf km", "4 km/0",
        "5 __import__('os')._exit(0)", "6 " + "m/" * 20_000, "-0 km/h", "7 1/(0 m)", "1," * 100_000 + "000 km"),
    "exact": (" " * 500_000, "right" * 100_000, "Paris\0", "Par\u200bis", "Paris or Rome"),
}
TASK = "summary: Capitals.\ngrader: exact\nsplits: {test: test.csv}\nprompt: '{question}'\nresponse: '{answer}'\n" + (
    "completion_prompt: '{question}'\n")


@pytest.fixture(scope="module", params=OWN)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Grader[Problem], Problem, str]:
    folder = DEMO_DIR / "tasks" / request.param
    if not folder.is_dir():
        folder = tmp_path_factory.mktemp(request.param)
        (folder / "task.yaml").write_text(TASK)
        (folder / "test.csv").write_text("question,answer\nOf France?,Paris\n")
    kind = kind_of(folder)
    assert isinstance(kind, TaskFolder)
    try:
        grader = kind.open_grader(EvaluateConfig(memory_limit_mb=1024), folder)
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    if request.param == "sql":
        grader._seconds = 2.0  # type: ignore[attr-defined]  # so that a hang ends soon
    problem = kind.load_problems(folder)[0]
    return request.param, grader, problem, kind.reference(problem)


@pytest.mark.slow
def test_nothing_passes_and_the_right_answer_still_does(opened: tuple[str, Grader[Problem], Problem, str]) -> None:
    name, grader, problem, right = opened
    answers = [*OF_ALL, *OWN[name]]
    *verdicts, last = grader.grade(problem, [*answers, right], alone=True)
    assert {answer[:60]: verdict for answer, verdict in zip(answers, verdicts, strict=True)
            if verdict.plus not in ("fail", "timeout")} == {}
    assert last.plus == "pass", last.detail
