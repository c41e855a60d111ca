"""The tasks that ship: the script builds them, right answers pass, and similar wrong ones do not."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xft_core.benchmarks.registry import kind_of
from xft_core.benchmarks.tasks.benchmark import TaskFolder
from xft_core.demo import DEMO_DIR
from xft_core.demo.data import read_jsonl
from xft_core.demo.task_rows import TASKS
from xft_core.recipe.sections import EvaluateConfig

WRONG: dict[str, Callable[[str], list[str]]] = {
    "extraction": lambda right: [
        right.replace('"topic"', '"theme"'), right[:-1], right.replace("true", "1").replace("false", "0")],
    "sql": lambda right: [right.replace("SELECT", "SELECT 1,"), right.replace("FROM orders", "FROM order")],
    "quantities": lambda right: [right.split()[0], f"1{right}", f"{right.split()[0]} mol"]}


def folder_of(name: str) -> Path:
    return DEMO_DIR / "tasks" / name


@pytest.mark.parametrize("name", TASKS)
def test_rows_follow_from_the_seed(name: str) -> None:
    make, *counts = TASKS[name]
    for split, count in zip(("train", "test"), counts, strict=True):
        rows: list[dict[str, Any]] = read_jsonl(folder_of(name) / f"{split}.jsonl")
        assert rows == make(random.Random(f"{name} {split} 0"), count, split == "test")


def test_no_ticket_of_the_test_is_trained_on() -> None:
    train, test = (
        {row["instruction"] for row in read_jsonl(folder_of("extraction") / f"{split}.jsonl")} for split in ("train", "test"))
    assert train and test and not train & test


@pytest.mark.parametrize("name", [*TASKS])
def test_right_answers_pass_and_wrong_neighbours_fail(name: str, most: int = 2) -> None:
    kind = kind_of(folder_of(name))
    assert isinstance(kind, TaskFolder)
    grader = kind.open_grader(EvaluateConfig(), folder_of(name))
    for problem in kind.load_problems(folder_of(name))[:most]:
        right = kind.reference(problem)
        first, *others = [verdict.plus for verdict in grader.grade(problem, [right, *WRONG[name](right)])]
        assert first == "pass" and "pass" not in others, problem.task_id


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_all_right_answers_pass(name: str) -> None:
    test_right_answers_pass_and_wrong_neighbours_fail(name, most=1000)
