"""The token that ends a response in training also ends the tuned models' answers: here, in lm-eval, in plain transformers."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from tests.factories import CHAT_TEMPLATE, dense_model, tokenizer
from xft_core.data.response_end import load_response_ends
from xft_core.data.rows import load_rows
from xft_core.errors import ArtifactError
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import GenerateConfig, MergeConfig, UpcycleConfig
from xft_core.stages.configs import STAGES, LmEvalStage
from xft_core.stages.run import run_stage

CHAT = (
    "{{% for m in messages %}}{{{{'<|im_start|>' + m.role + '\n' + m.content + {end!r} + '\n'}}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{'<|im_start|>assistant\n'}}}}{{% endif %}}")
ENDS = {"special": "<|im_end|>", "added": "<|turn_end|>", "text": "\n### End", "none": "", "text after": "<|im_end|> bye"}
IM_END, TURN_END = 301, 302
TUNING = {
    "epochs": 60, "max_steps": 40, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0,
    "precision": "fp32", "optimizer": "adamw", "log_steps": 20}


def base(directory: Path, end: str, **changes: Any) -> Path:
    """Create a model whose chat template ends a turn with ``end``, while only </s> (1) ends its answers."""
    dense_model(directory, vocab_size=384, **changes)
    tokens = tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokens.add_tokens([AddedToken("<|turn_end|>", special=False, normalized=False)])
    assert tokens.convert_tokens_to_ids(["<|im_end|>", "<|turn_end|>"]) == [IM_END, TURN_END]
    tokens.chat_template = CHAT.format(end=end)
    tokens.save_pretrained(directory)
    return directory


def stage(name: str, output: Path, **fields: Any) -> Path:
    run_stage(STAGES[name](output=output, **fields))
    return output


def prepared(path: Path, model: Path, **changes: Any) -> Path:
    rows = [{"instruction": f"Say hi {number}", "response": "hi"} for number in range(40)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(path / "rows.jsonl"), "template": "chat", "max_length": 128, "held_out_rows": 5} | changes
    return stage("prepare", path / "data", model=str(model), data=data)


def prompt_of(directory: Path) -> list[int]:
    tokens = AutoTokenizer.from_pretrained(directory)
    return list(tokens.apply_chat_template(
        [{"role": "user", "content": "Say hi 3"}], add_generation_prompt=True, return_dict=True).input_ids)


def plain_answer(directory: Path) -> list[int]:
    """Return the answer that transformers alone writes, using only the directory."""
    model, prompt = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), prompt_of(directory)
    return list(model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, pad_token_id=2)[0, len(prompt):])


def our_answer(directory: Path) -> tuple[str, str]:
    completer = TransformersCompleter(
        load_model(directory, torch.float32), load_tokenizer(directory), GenerateConfig(max_new_tokens=30), ())
    completion = completer.complete([prompt_of(directory)], seed=0)[0]
    return completion.text, completion.finish_reason


def ends_in_file(directory: Path) -> Any:
    return json.loads((directory / "generation_config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize(("kind", "end", "answer"), [
    ("special", IM_END, "hi"), ("added", TURN_END, "hi"), ("text", 1, "hi\n### End"), ("none", 1, "hi"),
    ("text after", 1, "hi bye")])
def test_a_tuned_model_stops_where_its_template_ends_a_turn(kind: str, end: int, answer: str, tmp_path: Path) -> None:
    model = base(tmp_path / "model", ENDS[kind])
    data = prepared(tmp_path, model)
    assert load_response_ends(data) == [end]
    tuned = stage("sft", tmp_path / "tuned", model=str(model), data=str(data), sft=TUNING)
    assert ends_in_file(tuned) == ([1, end] if end != 1 else 1)
    tokens = plain_answer(tuned)
    assert tokens[-1] == end and tokens.count(end) == 1 and len(tokens) < 30
    assert our_answer(tuned) == (answer, "stop")


@pytest.mark.slow
def test_the_upcycled_and_the_merged_model_stop_there_too(tmp_path: Path) -> None:
    model = base(tmp_path / "model", ENDS["added"])
    (model / "generation_config.json").unlink()
    data = prepared(tmp_path, model)
    upcycle = UpcycleConfig(num_experts=3, num_experts_per_tok=2)
    moe = stage("upcycle", tmp_path / "moe", model=str(model), upcycle=upcycle)
    tuned = stage("sft", tmp_path / "tuned", model=str(moe), data=str(data), sft=TUNING)
    merge = MergeConfig(method="uniform", precision="fp32")
    mix = stage("mix", tmp_path / "mix", model=str(tuned), data=str(data), merge=merge)
    merged = stage("merge", tmp_path / "merged", model=str(tuned), coefficients=mix)
    for directory in (tuned, merged):
        assert ends_in_file(directory) == [1, TURN_END]
        assert our_answer(directory) == ("hi", "stop")
    assert plain_answer(merged)[-1] == TURN_END

    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "questions.jsonl").write_text(json.dumps({
        "question": "<|im_start|>user\nSay hi 3<|turn_end|>\n<|im_start|>assistant\n", "answer": "hi"}) + "\n")
    (tasks / "greet.yaml").write_text(
        "task: greet\ndataset_path: json\ndataset_kwargs: {data_files: {test: questions.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['@@'], max_gen_toks: 30}\nmetric_list: [{metric: exact_match}]\n")
    for name, directory in (("a", tuned), ("b", merged)):
        found = run_stage(LmEvalStage(output=tmp_path / name, model=str(directory), task="greet", directory=tasks)).manifest
        assert found.metrics["exact_match"] == 1.0


def test_tokens_that_end_an_answer_are_added_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    """magicoder ends a response with the tokenizer's end token, which the checkpoint's defaults need not include."""
    model = base(tmp_path / "model", "")
    before = {"eos_token_id": [0, 5], "temperature": 0.7, "do_sample": True, "max_new_tokens": 7}
    (model / "generation_config.json").write_text(json.dumps(before))
    data = prepared(tmp_path, model, template="magicoder", max_length=256)
    short = TUNING | {"max_steps": 1}
    tuned = stage("sft", tmp_path / "tuned", model=str(model), data=str(data), sft=short)
    assert json.loads((tuned / "generation_config.json").read_text()) == before | {"eos_token_id": [0, 5, 1]}
    (model / "generation_config.json").write_text(json.dumps(before | {"eos_token_id": [1]}))
    tuned = stage("sft", tmp_path / "as-it-was", model=str(model), data=str(data), sft=short)
    assert (tuned / "generation_config.json").read_text() == (model / "generation_config.json").read_text()


def test_templates_that_end_a_turn_with_no_token_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind, end in ENDS.items():
        path = tmp_path / kind.replace(" ", "-")
        path.mkdir()
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            prepared(path, base(path / "model", end))
        warned = "does not end with a token" in caplog.text
        assert warned == (kind in ("text", "none", "text after")), kind


def test_responses_that_are_all_cut_off_teach_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = base(tmp_path / "model", ENDS["special"])
    (tmp_path / "rows.jsonl").write_text("".join(
        json.dumps({"instruction": f"{number}", "response": "x<|im_end|>" * 200}) + "\n" for number in range(9)))
    with caplog.at_level(logging.WARNING):
        data = stage("prepare", tmp_path / "data", model=str(model), data={
            "path": str(tmp_path / "rows.jsonl"), "template": "chat", "max_length": 64})
    assert "every response is cut off at data.max_length (64)" in caplog.text
    assert load_response_ends(data) == [] and set(load_rows(data, "train").lengths()) == {64}


def test_data_of_an_earlier_version_and_a_spoiled_note(tmp_path: Path) -> None:
    assert load_response_ends(tmp_path) is None
    (tmp_path / "response_end.json").write_text('{"token_ids": "1"}')
    with pytest.raises(ArtifactError, match="does not record which tokens end a response"):
        load_response_ends(tmp_path)


def test_the_factories_template_ends_with_the_end_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "</s>" in CHAT_TEMPLATE
    data = prepared(tmp_path, dense_model(tmp_path / "model"))
    assert load_response_ends(data) == [1] and not caplog.text
