"""What a plan knows about a recipe's data: counted if the file is on this machine, otherwise unknown."""

import json
from pathlib import Path

import pytest

from xft_core.data.packing import pack
from xft_core.demo import DEMO_DIR
from xft_core.planning.inputs import data_size, problem_count
from xft_core.planning.plan import training_steps
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe

MODEL = DEMO_DIR / "model"


def recipe(*changes: str) -> Recipe:
    return parse(Recipe, {}, list(changes))


def data_file(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={path}"


def test_rows_of_a_local_file_are_counted_and_packed_as_in_training(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {number}.", "response": "word " * (3 * number % 40 + 1)} for number in range(100)]
    chosen = recipe(
        data_file(tmp_path / "data.jsonl", [*rows, *rows[:7], {"instruction": "a", "response": " "}]), "data.held_out_rows=10",
        "data.max_length=64", "sft.micro_batch_size=4", "sft.batch_size=4", "sft.epochs=1")
    size = data_size(chosen, MODEL)
    assert size is not None
    assert (size.train_rows, size.held_out_rows) == (90, 10)
    assert size.tokens_per_row <= (size.padded_row or 0) <= 64
    # More than the sum of tokens divided by the length, because sequences are not completely filled.
    assert size.sequences_per_row and size.sequences_per_row >= size.tokens_per_row / 64
    assert training_steps(chosen.sft, 64, size)[0] == -(-90 * size.sequences_per_row // 4)


def test_the_demos_steps_are_those_that_it_makes() -> None:
    chosen = recipe("data.path=demo:instruct.jsonl", "data.max_length=256", "data.max_rows=1700", "data.held_out_rows=200",
                    "sft.batch_size=8", "sft.epochs=1")
    size = data_size(chosen, MODEL)
    assert size is not None and (size.train_rows, size.held_out_rows) == (1500, 200)
    assert training_steps(chosen.sft, 256, size)[0] == pytest.approx(145, rel=0.1)  # 145: see README


@pytest.mark.parametrize("content", ["", "\n\n", '{"instruction": "a", "response": ""}\n'])
def test_no_rows_are_no_size(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    assert data_size(recipe(f"data.path={path}"), MODEL) is None


def test_a_hub_name_and_a_tokenizer_that_is_not_here_are_no_size(tmp_path: Path) -> None:
    assert data_size(recipe("data.path=owner/data"), MODEL) is None
    assert data_size(recipe("data.path=demo:instruct.jsonl"), tmp_path) is None


def test_one_row_is_enough(tmp_path: Path) -> None:
    size = data_size(recipe(data_file(tmp_path / "data.jsonl", [{"instruction": "a", "response": "b"}])), MODEL)
    assert size is None or size.train_rows >= 0
    assert pack([5], 5) == [[0]]


def test_problems_are_counted_where_they_are_here() -> None:
    assert problem_count(recipe('evaluate.benchmarks=["demo:benchmark.jsonl"]')) == 80
    assert problem_count(recipe('evaluate.benchmarks=["demo:benchmark.jsonl"]', "evaluate.max_problems=7")) == 7
    assert problem_count(recipe('evaluate.benchmarks=["not-here.jsonl"]')) is None
