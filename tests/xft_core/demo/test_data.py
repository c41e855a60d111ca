"""The shipped benchmarks match the output of build.py. The test rebuilds only their first rows, which is enough to notice a
change of the grammar or the seeds."""

import random

import pytest

from xft_core.demo import DEMO_DIR
from xft_core.demo.build import BENCHMARK_ROWS, LARGE_BENCHMARK_ROWS
from xft_core.demo.data import benchmark_rows, read_jsonl

MADE_AGAIN = 20


@pytest.mark.parametrize("name, seed, count", [
    ("benchmark.jsonl", "benchmark 0", BENCHMARK_ROWS),
    ("benchmark_300.jsonl", "large benchmark 0", LARGE_BENCHMARK_ROWS)])
def test_benchmarks_follow_from_the_seed(name: str, seed: str, count: int) -> None:
    rows = read_jsonl(DEMO_DIR / name)
    assert rows[:MADE_AGAIN] == benchmark_rows(random.Random(seed), MADE_AGAIN)
    assert len(rows) == count == len({row["task_id"] for row in rows}) == len({row["prompt"] for row in rows})


def test_no_problem_of_the_large_benchmark_was_trained_on() -> None:
    instructions = "".join(
        row["instruction"] for name in ("instruct", "reserved") for row in read_jsonl(DEMO_DIR / f"{name}.jsonl"))
    assert "def make_" in instructions  # it contains problems of the same form
    assert not [row for row in read_jsonl(DEMO_DIR / "benchmark_300.jsonl") if row["prompt"].strip() in instructions]
