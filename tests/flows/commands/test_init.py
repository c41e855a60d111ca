"""``xft init`` writes a valid recipe with the reported values, and refuses unsuitable input before it writes a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.commands import init
from flows.options import parser
from tests.factories import dense_model
from xft_core.errors import CheckpointError, DataError, RecipeError
from xft_core.planning.draft import draft
from xft_core.planning.machine import Machine
from xft_core.recipe.load import flatten, load_recipe
from xft_core.recipe.sections import Recipe

SMALL = Machine(memory=10e9, device_memory=None, disk=1e12)


def write_init(*arguments: str) -> int:
    return init.run(parser().parse_args(["init", *arguments]))


def rows(path: Path, number: int, **row: Any) -> str:
    row = row or {"instruction": "Add one.", "response": "def f(x):\n    return x + 1"}
    path.write_text("".join(json.dumps(row | {"id": index}) + "\n" for index in range(number)))
    return str(path)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # so that no benchmarks are found


def test_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_init("--model", "demo:model", "--data", "demo:instruct.jsonl", "--benchmark", "demo:benchmark.jsonl") == 0
    recipe = load_recipe(Path("demo-model.yaml"))
    assert (recipe.name, recipe.model.path, recipe.data.path) == ("demo-model", "demo:model", "demo:instruct.jsonl")
    assert (recipe.data.template, recipe.data.max_length, recipe.data.held_out_rows) == ("magicoder", 256, 200)
    assert recipe.evaluate.benchmarks == ["demo:benchmark.jsonl"]
    said = capsys.readouterr().out
    assert "xft run demo-model.yaml" in said and "99% of 2,000 sampled rows" in said and "To do before it can run" not in said


def test_every_field_can_be_had_and_changes_nothing() -> None:
    asked = "--model", "demo:model", "--data", rows(Path("rows.jsonl"), 30)
    write_init("few.yaml", *asked)
    write_init("every.yaml", *asked, "--all")
    assert load_recipe(Path("few.yaml")) == load_recipe(Path("every.yaml"))
    text = Path("every.yaml").read_text()
    for name in flatten(Recipe()):
        assert f"{name.rpartition('.')[2]}: " in text, name
    assert all(line.lstrip().startswith("#") for line in text.splitlines() if "expert_rank: " in line)


def test_fields_follow_from_model_and_data() -> None:
    model = dense_model(Path("model"), max_position_embeddings=100)
    made = draft("a", str(model), model, rows(Path("rows.jsonl"), 30), [], Machine(memory=1e12, device_memory=8e10, disk=1e12))
    assert made.values["data.template"] == "chat"  # its tokenizer has a chat template
    assert made.values["data.max_length"] == 100 and "context is 100 tokens" in made.reasons["data.max_length"]
    assert made.values["data.held_out_rows"] == 6  # a fifth of the rows
    assert made.values["sft.batch_size"] == 1 and made.values["sft.precision"] == "bf16"
    assert made.values["evaluate.benchmarks"] == [] and "xft fetch humaneval" in made.reasons["evaluate.benchmarks"]


def test_a_large_model_is_made_to_fit(tmp_path: Path) -> None:
    model = dense_model(tmp_path / "large")
    shape = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "vocab_size": 32256}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | shape | {
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128, "max_position_embeddings": 4096}))
    (model / "model.safetensors").unlink()
    made = draft("large", str(model), model, rows(tmp_path / "rows.jsonl", 3000), [], SMALL)
    assert made.values["sft.precision"] == "bf16" and "10.0 GB" in made.reasons["sft.precision"]
    assert made.values["sft.batch_size"] % made.values["sft.micro_batch_size"] == 0


def test_what_does_not_fit_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    for error, message, asked in [
            (CheckpointError, "no model directory 'none'", ("--model", "none", "--data", "demo:instruct.jsonl")),
            (DataError, "no file 'none.jsonl'", ("--model", "demo:model", "--data", "none.jsonl")),
            (DataError, "match no known form", ("--model", "demo:model", "--data", rows(tmp_path / "b.jsonl", 3, text="a"))),
            (DataError, "no chat template for them",
             ("--model", "demo:model", "--data", rows(tmp_path / "c.jsonl", 3, messages=turns))),
            (DataError, "no row with a response", ("--model", "demo:model", "--data", rows(
                tmp_path / "d.jsonl", 3, instruction="a", response=" "))),
            (DataError, "none.jsonl", ("--model", "demo:model", "--data", "demo:instruct.jsonl", "--benchmark", "none.jsonl"))]:
        with pytest.raises(error, match=message):
            write_init(*asked)
    assert not list(tmp_path.glob("*.yaml"))


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(RecipeError, match="is not overwritten"):
        write_init("mine.yaml", "--model", "demo:model", "--data", "demo:instruct.jsonl")
    assert (tmp_path / "mine.yaml").read_text() == "name: mine\n"
