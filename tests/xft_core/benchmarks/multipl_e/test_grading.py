"""Verdicts on hand-written solutions in every language with an installed toolchain; misbehaving programs are contained."""

from functools import cache
from pathlib import Path

import pytest

from tests.xft_core.benchmarks.multipl_e.solutions import BELOW_ZERO, CLOSING, SOLUTIONS
from xft_core.benchmarks.benchmark import Grader, NotGradable
from xft_core.benchmarks.multipl_e.benchmark import MultiPLE
from xft_core.benchmarks.multipl_e.grading import MultiPLEGrader
from xft_core.benchmarks.multipl_e.languages import LANGUAGES
from xft_core.benchmarks.multipl_e.problems import Problem
from xft_core.errors import SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import open_sandbox

DATA = Path(__file__).parents[5] / "shared" / "data" / "benchmarks" / "multipl-e"
BY_NAME = {language.name: language for language in LANGUAGES.values()}
COMPILED = {"ts", "cpp", "java", "rs", "go", "swift"}  # seconds for each program
EACH_LANGUAGE = [
    pytest.param(name, marks=[pytest.mark.slow] if name in COMPILED else [], id=name) for name in BY_NAME]


@cache
def grader(name: str) -> Grader[Problem]:
    """Return a language's grader. Skip the test without a sandbox or a toolchain."""
    try:
        open_sandbox("bubblewrap")
    except SandboxError as error:
        pytest.skip(str(error))
    try:
        return MultiPLEGrader(EvaluateConfig(memory_limit_mb=2048), BY_NAME[name])
    except NotGradable as reason:
        pytest.skip(str(reason))


def problems(name: str) -> dict[str, Problem]:
    path = DATA / f"humaneval-{name}.jsonl"
    if not path.is_file():
        pytest.skip("the shared benchmarks are not here")
    return {problem.task_id: problem for problem in MultiPLE().load_problems(path)}


def fenced(problem: Problem, body: str, name: str, anew: bool) -> str:
    """Return what a model writes into the fence: the rest of the function, or the whole function from its first line."""
    lines = problem.prompt.rstrip().splitlines()[-2 if name == "pl" else -1:]
    start = "\n".join(lines) + "\n" if anew else ""
    return f"{start}{body}{CLOSING.get(name, '}')}\n```\n\nThis is how it works: ..."


def completed(body: str, name: str) -> str:
    """Return what a model writes after the plain prompt: the function, then the start of the next one, up to the stop."""
    following = {"rb": "\n\n", "lua": "\n\n", "pl": "\n\n", "php": "\n\nfunction", "js": "\n\nfunction ", "ts": "\n\nfunction ",
                 "go": "\n\nfunc"}
    return f"{body}{CLOSING.get(name, '}')}" + following.get(name, "\n")


@pytest.mark.parametrize("name", EACH_LANGUAGE)
def test_right_wrong_and_broken_solutions_are_told_apart(name: str) -> None:
    of_language, kind = problems(name), MultiPLE()
    assert len(SOLUTIONS[name]) == 5
    for task_id, (right, wrong, broken) in SOLUTIONS[name].items():
        problem = of_language[task_id]
        programs = [
            kind.solution(problem, completed(right, name), "completion"),
            kind.solution(problem, fenced(problem, right, name, anew=False), "magicoder"),
            kind.solution(problem, fenced(problem, right, name, anew=True), "chat"),
            kind.solution(problem, completed(wrong, name), "completion"),
            kind.solution(problem, completed(broken, name), "completion")]
        verdicts = grader(name).grade(problem, programs)
        assert [verdict.base for verdict in verdicts] == ["pass"] * 3 + ["fail"] * 2, (task_id, verdicts)
        assert [verdict.plus for verdict in verdicts] == [verdict.base for verdict in verdicts]
        assert all(verdict.detail for verdict in verdicts[3:]) and not any(verdict.detail for verdict in verdicts[:3])
        if name in COMPILED:
            assert "does not compile" in verdicts[4].detail and "compile" not in verdicts[3].detail
        if task_id == BELOW_ZERO:
            assert verdicts == grader(name).grade(problem, programs), "the same programs get the same verdicts and details"
