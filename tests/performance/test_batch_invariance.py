"""Greedy answers computed alone and in batches, and a check that a batching bug would be noticed."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from performance.batch_invariance import main, partings
from tests.factories import dense_model
from tests.xft_core.stages.test_generate import NamedProblem
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import GenerateConfig, UpcycleConfig
from xft_core.stages.configs import UpcycleStage
from xft_core.stages.generate import Request
from xft_core.stages.run import run_stage


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def moe(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage = UpcycleStage(
        output=tmp_path_factory.mktemp("moe") / "moe", model=str(dense),
        upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=3))
    run_stage(stage)
    return stage.output


def requests() -> list[Request]:
    """Return prompts of 1 to 40 tokens."""
    draw = torch.Generator().manual_seed(0)
    return [
        Request(NamedProblem(f"Own/{index}"), 0, "", torch.randint(3, 300, (1 + 2 * index,), generator=draw).tolist())
        for index in range(20)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_batches_change_nothing_but_ties(kind: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(kind)
    completer = TransformersCompleter(
        load_model(directory, torch.float32), load_tokenizer(directory), GenerateConfig(max_new_tokens=24), ())
    for batch_size in (2, 7, 20):
        for item in partings(completer, requests(), batch_size):
            assert abs(item.logit_gap) < 1e-4 * item.scale


def test_a_fault_of_the_batching_is_no_tie(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes padding for text, as if the attention mask had been forgotten."""
    completer = TransformersCompleter(
        load_model(dense, torch.float32), load_tokenizer(dense), GenerateConfig(max_new_tokens=24), ())
    generate = completer.model.generate

    def without_mask(**given: object) -> Sequence[Sequence[int]]:
        return generate(**(given | {"attention_mask": torch.ones_like(given["input_ids"])}))  # type: ignore[arg-type]

    monkeypatch.setattr(completer.model, "generate", without_mask)
    found = partings(completer, requests(), 7)
    assert len(found) > 10 and max(abs(item.logit_gap) for item in found) > 0.01


def test_command(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dense), "demo:benchmark.jsonl", "--max-problems", "3", "--max-new-tokens", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["problems"], report["batch_size"], report["model"]) == (3, 16, "llama")
    assert report["different"] == len(report["answers"])
    assert main(["demo:model", "absent.jsonl"]) == 2
    assert capsys.readouterr().err.startswith("error: There is no file 'absent.jsonl'")
