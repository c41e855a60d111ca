"""Multiple choice by likelihood gives the same results as a plain loop over transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.factories import dense_model
from xft_core.benchmarks.multiple_choice import MultipleChoice
from xft_core.errors import DataError
from xft_core.models.loading import load_tokenizer
from xft_core.recipe.sections import EvaluateConfig, GenerateConfig, UpcycleConfig
from xft_core.reporting.partial_credit import partial_credit
from xft_core.stages.configs import EvaluateStage, GenerateStage, UpcycleStage
from xft_core.stages.run import run_stage
from xft_core.store.results.evaluate import EvaluationFile
from xft_core.store.results.generate import generated_samples

ROWS: list[dict[str, Any]] = [
    {"question": f"What is {n} + {n}?", "choices": [str(n), str(2 * n), f"{n} and {n} again", "none of these"],
     "answer": (1, "B", str(2 * n), 3)[n % 4], "subject": ("sums", "others")[n % 2]} for n in range(1, 9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("choices") / "model")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measured(model: Path, rows: list[dict[str, Any]], tmp_path: Path, style: str = "completion") -> tuple[
        list[dict[str, Any]], EvaluationFile, dict[str, Any]]:
    benchmark, answers = write(tmp_path / "mmlu.jsonl", rows), tmp_path / "answers"
    run_stage(GenerateStage(
        output=answers, model=str(model), benchmark=str(benchmark), prompt_style=style,
        generate=GenerateConfig(precision="fp32", batch_size=3)))
    metrics = run_stage(EvaluateStage(
        output=tmp_path / "verdicts", samples=answers, benchmark=str(benchmark), evaluate=EvaluateConfig())).manifest.metrics
    found = EvaluationFile.read(tmp_path / "verdicts")
    assert found is not None
    return [json.loads(sample.solution or "{}") for sample in generated_samples(answers)], found, metrics


def test_likelihoods_and_scores_are_those_of_a_plain_loop(model: Path, tmp_path: Path) -> None:
    samples, found, metrics = measured(model, ROWS, tmp_path)
    tokenizer, plain = load_tokenizer(model), AutoModelForCausalLM.from_pretrained(model).eval()

    def log_likelihood(prompt: str, answer: str) -> float:
        given, whole = tokenizer(prompt).input_ids, tokenizer(prompt + answer).input_ids
        assert whole[:len(given)] == given
        with torch.no_grad():
            log_SV = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(log_SV[place - 1, whole[place]]) for place in range(len(given), len(whole)))

    right = {"acc": 0, "acc_norm": 0, "acc_letters": 0}
    for row, sample in zip(ROWS, samples, strict=True):
        choices = row["choices"]
        texts = [log_likelihood(f"Question: {row['question']}\nAnswer:", f" {choice}") for choice in choices]
        listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True))
        letters = [log_likelihood(f"{row['question']}\n{listed}Answer:", f" {letter}") for letter in "ABCD"]
        assert sample["log_likelihoods"] == pytest.approx(texts, abs=1e-3)
        assert sample["letters"] == pytest.approx(letters, abs=1e-3)
        answer = 3 if row["answer"] == 3 else 1
        normalised = [value / len(choice) for value, choice in zip(texts, choices, strict=True)]
        for name, values in (("acc", texts), ("acc_norm", normalised), ("acc_letters", letters)):
            right[name] += values.index(max(values)) == answer
    assert metrics["base_pass_at_1"] == metrics["plus_pass_at_1"] == right["acc"] / len(ROWS)
    assert metrics["measure/acc_norm"] == right["acc_norm"] / len(ROWS)
    assert metrics["measure/acc_letters"] == right["acc_letters"] / len(ROWS)
    assert {"pass_at_1/sums", "pass_at_1/others"} <= metrics.keys() and "mean_score" not in metrics
    credit = {item.name: item for item in partial_credit(found)}
    assert list(credit) == ["acc_norm", "acc_letters"]
    assert all(item.interval and 0 <= item.interval[0] <= item.value <= item.interval[1] <= 1 for item in credit.values())


def test_the_mixture_begins_with_the_numbers_of_its_source(model: Path, tmp_path: Path) -> None:
    run_stage(UpcycleStage(
        output=tmp_path / "moe", model=str(model), upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=3)))
    other = tmp_path / "of_the_mixture"
    other.mkdir()
    dense, _, _ = measured(model, ROWS[:2], tmp_path, "magicoder")
    moe, _, _ = measured(tmp_path / "moe", ROWS[:2], other, "magicoder")
    for one, mixed in zip(dense, moe, strict=True):
        assert mixed["log_likelihoods"] == pytest.approx(one["log_likelihoods"], abs=1e-3)


def test_a_question_that_does_not_fit_the_context_is_wrong(model: Path, tmp_path: Path) -> None:
    samples, found, metrics = measured(model, [{**ROWS[0], "question": "why? " * 2000}, ROWS[1]], tmp_path)
    assert samples[0] == {} and len(samples[1]["letters"]) == 4
    assert found.problems[0].samples[0].plus == "fail" and metrics["problems"] == 2


@pytest.mark.parametrize("change, named", [
    ({"answer": 4}, "answer is 4.*0 to 3"), ({"answer": "E"}, 'answer is "E"'), ({"answer": True}, "answer is true"),
    ({"answer": None}, "answer is null"), ({"choices": ["a"]}, "choices"), ({"choices": "ab"}, "choices"),
    ({"choices": ["a", ""]}, "none of which is empty"), ({"choices": ["a", "a"]}, "twice"), ({"question": " "}, "question"),
    ({"subject": 3}, "subject is 3"), ({"task_id": 1}, "task_id is 1")])
def test_a_broken_row_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = write(tmp_path / "mmlu.jsonl", [ROWS[0], ROWS[1] | change])
    with pytest.raises(DataError, match=f"line 2: .*{named}"):
        MultipleChoice().load_problems(path)
