"""Held-out loss on any data, with the demo's model and an upcycled one."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from xft_core.errors import DataError
from xft_core.files.locate import find_model
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import DataConfig, UpcycleConfig
from xft_core.stages.configs import NllStage, UpcycleStage
from xft_core.stages.nll import ratio, read_rows
from xft_core.stages.run import run_stage
from xft_core.training.held_out import held_out_loss

ROWS = [
    {"instruction": "Add two numbers.", "response": "def add(a, b):\n    return a + b\n"},
    {"instruction": "Say hello.", "response": "print('hello')"},
    {"instruction": "Nothing.", "response": "  "},
    {"instruction": "Square a number, however large it may be.", "response": "def square(x):\n    return x * x\n"},
]


def stage(directory: Path, name: str = "out", **changes: Any) -> NllStage:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = DataConfig(path=str(path), **changes.pop("data", {}))
    return NllStage(output=directory / name, data=data, **changes)


def test_the_loss_is_that_of_the_model_and_has_a_standard_error(tmp_path: Path) -> None:
    config = stage(tmp_path)
    metrics = run_stage(config).manifest.metrics
    directory = find_model("demo:model")
    model, tokenizer = load_model(directory, torch.float32), load_tokenizer(directory)
    rows, _, _ = read_rows(config, tokenizer, tmp_path)
    assert metrics["nll"] == pytest.approx(held_out_loss(model, rows).nll, rel=1e-5)
    by_hand = []
    for index in range(len(rows)):
        tokens, prompt_length = rows[index]
        with torch.no_grad():
            log_p = model(tokens[None]).logits.log_softmax(-1)[0]
        by_hand.append(-sum(
            float(log_p[place - 1, tokens[place]]) for place in range(prompt_length, len(tokens))))
    content = json.loads((config.output / "nll.json").read_text())
    assert [loss for loss, _ in content["rows"]] == pytest.approx(by_hand, rel=1e-4)
    assert (metrics["rows"], metrics["dropped"], metrics["truncated"]) == (3, 1, 0)
    assert metrics["response_tokens"] == sum(tokens for _, tokens in content["rows"])
    assert 0 < metrics["nll_standard_error"] == content["standard_error"]


def test_upcycling_is_the_identity_for_it_too(tmp_path: Path) -> None:
    upcycled = run_stage(UpcycleStage(output=tmp_path / "moe", upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=3)))
    assert not upcycled.reused
    dense = run_stage(stage(tmp_path)).manifest.metrics
    moe = run_stage(stage(tmp_path, "other", model=str(tmp_path / "moe"))).manifest.metrics
    assert moe["nll"] == pytest.approx(dense["nll"], rel=1e-4)


def test_what_counts_for_the_key(tmp_path: Path) -> None:
    first = run_stage(stage(tmp_path))
    assert run_stage(stage(tmp_path, data={"held_out_rows": 3, "decontaminate": False})).reused
    assert "path" not in first.manifest.config["data"]
    longer = run_stage(stage(tmp_path, "short", data={"max_length": 42}))
    assert longer.manifest.metrics["truncated"] + longer.manifest.metrics["dropped"] > 1


def test_data_without_responses_is_refused(tmp_path: Path) -> None:
    config = stage(tmp_path)
    Path(config.data.path).write_text(json.dumps(ROWS[2]) + "\n")
    with pytest.raises(DataError, match=r"None of the .* can be measured"):
        run_stage(config)


def test_the_standard_error_of_a_ratio() -> None:
    assert ratio([2.0], [4]) == (0.5, None)
    # With equal weights: the standard error of a mean.
    value, error = ratio([1.0, 2.0, 6.0], [2, 2, 2])
    assert value == 1.5 and error == pytest.approx(math.sqrt(7 / 3) / 2)
    assert ratio([1.0, 2.0, 3.0], [2, 4, 6]) == (0.5, 0.0)
