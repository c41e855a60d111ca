import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.factories import FAMILY_CONFIGS, dense_model, each_family
from xft_core.benchmarks import progress
from xft_core.generation.kv_cache import GrowingLayer, growing_cache
from xft_core.generation.with_transformers import READ_AT_ONCE, TransformersCompleter
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import GenerateConfig
from xft_core.stages.configs import GenerateStage
from xft_core.stages.generate import Request, make_batches
from xft_core.stages.run import run_stage


@dataclass(frozen=True)
class NamedProblem:
    task_id: str


PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [30, 31], [50, 51, 52, 53, 54], [7]]


def benchmark(path: Path, count: int = 7, **prompts: str) -> Path:
    rows = [
        {"task_id": f"Own/{index}",
         "prompt": prompts.get(f"p{index}", f"def f{index}(x):\n" + "    # x\n" * (index % 4 * 8)),
         "entry_point": f"f{index}", "canonical_solution": "    return x\n", "base_input": [[1]], "plus_input": []}
        for index in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples_of(stage: GenerateStage) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage.output / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: more do not help models this small, and slow down other tests on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("model") / "llama")


def completer(model: Path, stops: tuple[str, ...] = (), **settings: Any) -> TransformersCompleter:
    return TransformersCompleter(load_model(model, torch.float32), load_tokenizer(model), GenerateConfig(**settings), stops)


def greedy_tokens(model: Path, prompt: list[int], count: int) -> list[int]:
    """Generate in the plain way: no batch, no cache, no generate()."""
    network = load_model(model, torch.float32)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(network(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt):]


def test_a_padded_batch_gives_what_each_prompt_gives_alone(model: Path) -> None:
    together = completer(model, max_new_tokens=12).complete(PROMPTS, seed=0)
    tokenizer = load_tokenizer(model)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        expected = greedy_tokens(model, prompt, 12)
        if 1 in expected:
            expected = expected[:expected.index(1) + 1]
        assert completion.new_tokens == len(expected)
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_neox"])
def test_rows_go_on_alike_when_others_have_ended(family: str, tmp_path: Path) -> None:
    """The batch shrinks on the way, together with the cache, including attention windows."""
    directory = dense_model(tmp_path / "model", family)
    tested = completer(directory, max_new_tokens=30)
    tested.end_tokens = []
    prompts = [[5 + row + place for place in range(3 * row + 1)] for row in range(6)]
    rooms = [30, 3, 9, 20, 4, 21]
    for prompt, room, tokens in zip(prompts, rooms, tested.write(prompts, rooms, seed=0), strict=True):
        assert tokens == greedy_tokens(directory, prompt, room)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_that_rows_share_is_read_once_for_the_same_answers(
        family: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths, longer than an attention window (16) as well."""
    directory = dense_model(tmp_path / "model", family)
    prompts = [[5 + row + place % 30 for place in range(length)] for row, length in enumerate((25, 6, 2)) for _ in range(4)]
    answers, first_read = written_and_read(directory, prompts, temperature)
    monkeypatch.setattr(TransformersCompleter, "_read_prompts", lambda self, *given: growing_cache(self.model))
    expected, first_expected = written_and_read(directory, prompts, temperature)
    assert answers == expected
    assert (first_read[0], first_expected[0]) == (3 * 24, 12 * 25)
    if temperature:
        assert len(set(map(tuple, answers[:4]))) > 1, "samples of one problem differ"


@pytest.mark.parametrize("family", each_family(sorted(FAMILY_CONFIGS)))
def test_prompts_that_are_read_a_few_at_a_time_have_the_same_answers(
        family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of all lengths, in no order, two of them twice."""
    directory = dense_model(tmp_path / "model", family)
    lengths = [2, 31, 7, 40, 3, 28, 12, 5, 22, 2, 35, 9, 17, 4, 26, 14, 6, 19, 11, 38]
    prompts = [[5 + row + place % 30 for place in range(length)] for row, length in enumerate(lengths)]
    prompts += [prompts[3], prompts[0]]
    answers, read = written_and_read(directory, prompts)
    monkeypatch.setattr(TransformersCompleter, "_read_prompts", lambda self, *given: growing_cache(self.model))
    expected, whole = written_and_read(directory, prompts)
    assert answers == expected
    assert whole[0] == len(prompts) * 40
    keeps_all = all(type(layer) is GrowingLayer for layer in growing_cache(load_model(directory, torch.float64)).layers)
    ordered = sorted(lengths, reverse=True)
    groups = [ordered[start:start + READ_AT_ONCE] for start in range(0, len(ordered), READ_AT_ONCE)]
    # In groups, the longest first. Where a layer keeps only a window of tokens, all prompts are read at once.
    assert read[:-len(whole)] == ([len(group) * (group[0] - 1) for group in groups] if keeps_all else [])


def written_and_read(
    directory: Path, prompts: list[list[int]], temperature: float = 0.0,
) -> tuple[list[list[int]], list[int]]:
    """Ten tokens after each prompt, and the tokens of each forward pass with their padding. fp64 has no ties."""
    settings = GenerateConfig(max_new_tokens=10, temperature=temperature)
    tested = TransformersCompleter(load_model(directory, torch.float64), load_tokenizer(directory), settings, ())
    tested.end_tokens = []
    read: list[int] = []
    tested.model.get_input_embeddings().register_forward_hook(lambda module, given, output: read.append(given[0].numel()))
    return tested.write(prompts, [10] * len(prompts), seed=3), read


def test_each_row_stops_at_its_own_stop(model: Path) -> None:
    free = completer(model, max_new_tokens=24).complete(PROMPTS, seed=0)
    assert {completion.finish_reason for completion in free} == {"length"}
    stop = free[1].text[8:11]
    stopped = completer(model, (stop,), max_new_tokens=24).complete(PROMPTS, seed=0)
    for before, after in zip(free, stopped, strict=True):
        place = before.text.find(stop)
        if place < 0:
            assert after == before
        else:
            # The token that completes the stop is the last one: the model generated nothing more for this row.
            assert after.finish_reason == "stop"
            assert after.text.find(stop) == place and before.text.startswith(after.text)
            assert after.new_tokens < before.new_tokens
    assert stopped[1].finish_reason == "stop" and any(completion.finish_reason == "length" for completion in stopped)


def test_an_end_token_ends_a_row(model: Path, tmp_path: Path) -> None:
    tokens = greedy_tokens(model, PROMPTS[0], 12)
    last = next(index for index in range(2, 12) if tokens[index] not in tokens[:index])
    ending = dense_model(tmp_path / "model", eos_token_id=tokens[last])
    completions = completer(ending, max_new_tokens=12).complete(PROMPTS, seed=0)
    assert (completions[0].finish_reason, completions[0].new_tokens) == ("stop", last + 1)
    assert "length" in {completion.finish_reason for completion in completions}


def test_the_checkpoints_own_decoding_defaults_do_not_leak_in(model: Path, tmp_path: Path) -> None:
    other = dense_model(tmp_path / "model")
    (other / "generation_config.json").write_text(json.dumps(
        {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "eos_token_id": [1, 4]}))
    plain, changed = (
        [item.text for item in completer(path, max_new_tokens=12).complete(PROMPTS, seed=0)] for path in (model, other))
    assert changed == plain
    assert completer(other).end_tokens == [1, 4]


def test_samples_depend_on_the_seed_alone(model: Path) -> None:
    sampler = completer(model, max_new_tokens=12, temperature=1.0)
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    first = sampler.complete(PROMPTS, seed=5)
    assert torch.equal(torch.rand(2), expected)  # the caller's random state is unchanged
    assert sampler.complete(PROMPTS, seed=5) == first
    assert sampler.complete(PROMPTS, seed=6) != first


def test_spaces_at_the_start_of_a_completion_are_kept(tmp_path: Path) -> None:
    """Llama-style tokenizers strip one space from the start of the text they decode, which matters in Python."""
    directory = dense_model(tmp_path / "model", vocab_size=4)
    words = Tokenizer(models.BPE(vocab={"▁": 0, "</s>": 1, "a": 2, ":": 3}, merges=[], unk_token="a"))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(directory)
    spaces = completer(directory, max_new_tokens=4)
    with torch.no_grad():
        spaces.model.lm_head.weight.zero_()  # all tokens are equally likely: greedy takes the first, a space
    assert spaces.tokenizer.decode([0, 0, 0, 0]) == "   "
    assert [completion.text for completion in spaces.complete([[2, 3], [2]], seed=0)] == ["    ", "    "]


def test_stage(model: Path, tmp_path: Path) -> None:
    problems = benchmark(tmp_path / "own.jsonl", p3="def f3(x):\n" + "    # far too long\n" * 60)
    stage = GenerateStage(
        output=tmp_path / "out", model=str(model), benchmark=str(problems), max_problems=6, prompt_style="completion",
        generate=GenerateConfig(max_new_tokens=120, batch_size=4, precision="fp32"))
    metrics = run_stage(stage).manifest.metrics
    samples = samples_of(stage)
    assert [(sample["task_id"], sample["sample_index"]) for sample in samples] == [(f"Own/{n}", 0) for n in range(6)]
    assert samples[3] == samples[3] | {"finish_reason": "prompt_too_long", "completion": "", "new_tokens": 0}
    tokenizer = load_tokenizer(model)
    for sample in samples:
        assert sample["solution"].startswith(sample["prompt"])
        if sample["finish_reason"] == "length":  # either the token limit or the model's context is used up
            assert sample["new_tokens"] == min(120, 256 - len(tokenizer(sample["prompt"]).input_ids))
    assert metrics["problems"] == metrics["samples"] == 6 and metrics["prompt_too_long"] == 1
    assert metrics["truncated"] == sum(sample["finish_reason"] == "length" for sample in samples)
    assert metrics["new_tokens"] == sum(sample["new_tokens"] for sample in samples) > 0
    assert run_stage(stage).reused


def test_no_padding_token_and_magicoder_style(tmp_path: Path) -> None:
    model = dense_model(tmp_path / "model", max_position_embeddings=512)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (model / name).is_file():
            content = json.loads((model / name).read_text())
            content.pop("pad_token", None)
            (model / name).write_text(json.dumps(content))
    assert load_tokenizer(model).pad_token_id is None
    stage = GenerateStage(
        output=tmp_path / "out", model=str(model), benchmark=str(benchmark(tmp_path / "own.jsonl", 3)),
        generate=GenerateConfig(max_new_tokens=4, batch_size=3, num_samples=2, temperature=0.8, top_p=0.9))
    run_stage(stage)
    samples = samples_of(stage)
    assert [sample["sample_index"] for sample in samples] == [0, 1] * 3
    for sample in samples:
        assert "@@ Response\n```python\ndef f" in sample["prompt"] and sample["finish_reason"] != "prompt_too_long"
        assert sample["solution"].startswith(sample["prompt"].rpartition("```python\n")[2])


def test_batches_are_of_about_equally_long_prompts_and_the_longest_come_first() -> None:
    requests = [Request(NamedProblem(str(index)), 0, "", [7] * length) for index, length in enumerate((3, 50, 4, 49, 9))]
    batches = [[len(request.token_ids) for request in batch] for batch in make_batches(requests, 2)]
    assert batches == [[50, 49], [9, 4], [3]]


def test_temperature_and_top_p_do_what_they_are_called(model: Path) -> None:
    greedy = completer(model, max_new_tokens=8).complete(PROMPTS, seed=0)
    # The greedy token alone is the smallest set with this probability, at any temperature.
    assert completer(model, max_new_tokens=8, temperature=2.0, top_p=1e-6).complete(PROMPTS, seed=0) == greedy
    assert completer(model, max_new_tokens=8, temperature=1e-4).complete(PROMPTS, seed=0) == greedy
    hot = completer(model, max_new_tokens=1, temperature=5.0)
    wide = {completion.text for seed in range(30) for completion in hot.complete([PROMPTS[1]] * 4, seed)}
    narrow_sampler = completer(model, max_new_tokens=1, temperature=5.0, top_p=0.05)
    narrow = {completion.text for seed in range(30) for completion in narrow_sampler.complete([PROMPTS[1]] * 4, seed)}
    assert 1 < len(narrow) < len(wide) / 2


def test_chat_style_is_the_tokenizers_template(model: Path, tmp_path: Path) -> None:
    stage = GenerateStage(
        output=tmp_path / "out", model=str(model), benchmark=str(benchmark(tmp_path / "own.jsonl", 1)), prompt_style="chat",
        generate=GenerateConfig(max_new_tokens=4))
    run_stage(stage)
    (sample,) = samples_of(stage)
    assert sample["prompt"].startswith("<|user|>\n") and sample["prompt"].endswith(
        "</s>\n<|assistant|>\n```python\ndef f0(x):\n")


def test_a_batch_is_on_disk_before_the_next_and_is_not_asked_for_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = GenerateStage(
        output=tmp_path / "out", model=str(model), benchmark=str(benchmark(tmp_path / "own.jsonl")), seed=3,
        prompt_style="completion", generate=GenerateConfig(max_new_tokens=6, batch_size=2, num_samples=2, temperature=1.0))
    partial = tmp_path / "out.partial" / "checkpoints" / "samples.partial.jsonl"
    write, contents = TransformersCompleter.write, []

    def interrupted(self: TransformersCompleter, *given: Any) -> list[list[int]]:
        contents.append(partial.read_bytes() if partial.is_file() else b"")
        if len(contents) == 4:
            raise KeyboardInterrupt
        return write(self, *given)

    monkeypatch.setattr(TransformersCompleter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage)
    assert [content.count(b"\n") for content in contents] == [0, 2, 4, 6]
    assert all(after.startswith(before) for before, after in itertools.pairwise(contents)), "only ever added to"
    contents.append(b"")
    run_stage(stage)
    assert len(contents) == 5 + 4, "7 problems, 2 samples each, in batches of 2: 4 of 7 were left"
    assert contents[5] == contents[3]
    assert len(samples_of(stage)) == 14


def test_progress_says_how_long_it_will_take(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    stage = GenerateStage(
        output=tmp_path / "out", model=str(model), benchmark=str(benchmark(tmp_path / "own.jsonl")),
        prompt_style="completion", generate=GenerateConfig(max_new_tokens=2, batch_size=3))
    with caplog.at_level("INFO"):
        run_stage(stage)
    lines = [message for message in caplog.messages if message.startswith("generate ")]
    assert len(lines) == 2 and all(re.search(r"problems/min, about .+ left$", line) for line in lines)
    assert lines[0].startswith("generate 3/7 problems") and lines[1].startswith("generate 6/7 problems")


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_samples(model: Path, tmp_path: Path) -> None:
    fields = {
        "model": str(model), "benchmark": str(benchmark(tmp_path / "own.jsonl", 12)), "prompt_style": "completion",
        "seed": 3, "generate": {"max_new_tokens": 24, "batch_size": 2, "num_samples": 2, "temperature": 1.0}}
    whole = GenerateStage(output=tmp_path / "whole", **fields)
    run_stage(whole)
    config = tmp_path / "generate.json"
    config.write_text(json.dumps(fields | {"output": str(tmp_path / "killed")}))
    partial = tmp_path / "killed.partial" / "checkpoints" / "samples.partial.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "xft_core", "generate", str(config)], stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while process.poll() is None and not (partial.is_file() and partial.read_bytes().count(b"\n") >= 4):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    finished = partial.read_bytes()
    assert 4 <= finished.count(b"\n") < 24, "it was to be killed in the middle"
    # As left by a kill in the middle of writing: half a line.
    partial.write_bytes(finished + b'{"task_id": "Own/')
    killed = GenerateStage(output=tmp_path / "killed", **fields)
    run_stage(killed)
    assert (killed.output / "samples.jsonl").read_bytes() == (whole.output / "samples.jsonl").read_bytes()
    assert {sample["completion"] for sample in samples_of(whole) if sample["sample_index"] == 0} != {
        sample["completion"] for sample in samples_of(whole) if sample["sample_index"] == 1}
