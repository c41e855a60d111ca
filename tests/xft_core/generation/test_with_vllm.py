"""The vLLM back end: with vLLM itself if it is installed (slow), otherwise with a stand-in. The stand-in has the interface of
vllm.LLM.generate (0.32), computes with the plain model, and refuses names that vLLM does not have."""

import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.factories import dense_model
from tests.xft_core.stages.test_generate import PROMPTS, benchmark
from xft_core.benchmarks.find import find_benchmark
from xft_core.benchmarks.registry import kind_of
from xft_core.data.text_tokens import prompt_token_ids
from xft_core.errors import CheckpointError, RecipeError
from xft_core.files.locate import find_model
from xft_core.generation import with_vllm
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.generation.with_vllm import VllmCompleter, check_vllm
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import GenerateConfig, UpcycleConfig
from xft_core.stages.configs import GenerateStage, UpcycleStage
from xft_core.stages.run import run_stage


@dataclass
class SamplingParams:
    """The fields of vllm.SamplingParams that we use, with its defaults."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False


class LLM:
    """The part of vllm.LLM that we use. It handles stops and end tokens itself, one request after the other."""

    def __init__(
        self, model: str, dtype: str = "auto", generation_config: str = "auto", seed: int = 0, trust_remote_code: bool = True,
        load_format: str = "auto",
    ) -> None:
        assert load_format == "safetensors" and not trust_remote_code
        assert generation_config == "vllm", "the checkpoint's own decoding defaults would leak in"
        self.model = load_model(Path(model), getattr(torch, dtype))
        self.tokenizer = load_tokenizer(Path(model))
        limit = self.model.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=limit))
        self.limit = limit

    @torch.inference_mode()
    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True,
    ) -> list[Any]:
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._one(prompt["prompt_token_ids"], parameters))])
            for prompt, parameters in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: list[int], parameters: SamplingParams) -> list[int]:
        if len(prompt) >= self.limit:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        generator = torch.Generator().manual_seed(parameters.seed or 0)
        tokens: list[int] = []
        while len(tokens) < (parameters.max_tokens or 16) and len(prompt) + len(tokens) < self.limit:
            logits = self.model(torch.tensor([prompt + tokens])).logits[0, -1]
            if parameters.temperature:
                chances = (logits / parameters.temperature).softmax(-1)
                tokens.append(int(torch.multinomial(chances, 1, generator=generator)))
            else:
                tokens.append(int(logits.argmax()))
            text = self.tokenizer.decode(tokens, skip_special_tokens=parameters.skip_special_tokens)
            if tokens[-1] in (parameters.stop_token_ids or ()) or any(stop in text for stop in parameters.stop or ()):
                break
        return tokens


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(with_vllm, "find_spec", lambda name: module)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("model") / "llama")


def check_same_as_transformers(directory: Path) -> None:
    """Compare stops, end tokens, token limits, finish reasons and texts, under greedy decoding."""
    tokenizer = load_tokenizer(directory)
    config = GenerateConfig(max_new_tokens=24, precision="fp32")
    free = TransformersCompleter(load_model(directory, torch.float32), tokenizer, config, ()).complete(PROMPTS, seed=0)
    prompts = [*PROMPTS, [5] * 256, [5] * 250]
    for stops in ((), (free[1].text[8:11], "never")):
        plain = TransformersCompleter(load_model(directory, torch.float32), tokenizer, config, stops)
        engine = VllmCompleter(directory, tokenizer, config, stops)
        assert (engine.end_tokens, engine.context_length) == (plain.end_tokens, plain.context_length)
        completions = engine.complete(prompts, seed=0)
        assert completions == plain.complete(prompts, seed=0)
        assert completions[-2].finish_reason == "prompt_too_long" and completions[-1].new_tokens <= 6
    assert {completion.finish_reason for completion in completions} >= {"stop", "length"}


@pytest.mark.usefixtures("stand_in")
def test_same_answers_as_transformers(dense: Path) -> None:
    check_same_as_transformers(dense)


def test_weights_that_vllm_alone_would_read_are_refused(dense: Path, tmp_path: Path) -> None:
    """Without an index, vLLM reads every safetensors file in a directory."""
    directory = dense_model(tmp_path / "model")
    (directory / "model.fp16.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    with pytest.raises(
            CheckpointError, match=r"model\.fp16\.safetensors as well as model\.safetensors, and vLLM would read both"):
        check_vllm(directory)
    (directory / "model.fp16.safetensors").unlink()
    with pytest.raises(RecipeError, match="not installed"):
        check_vllm(directory)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself_gives_what_transformers_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the demo model, because the tiny models' heads are too small for vLLM's attention."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm

    monkeypatch.setattr(vllm, "LLM", partial(vllm.LLM, enforce_eager=True))  # compiling takes longer than the test
    directory, path = find_model("demo:model"), find_benchmark("demo:benchmark.jsonl")
    tokenizer, kind = load_tokenizer(directory), kind_of(path)
    problems = kind.load_problems(path, 40)
    prompts = [prompt_token_ids(kind.build_prompt(problem, "completion", tokenizer), tokenizer) for problem in problems]
    prompts += [[5] * 1024, [5] * 1020]
    stops = kind.stops(problems, "completion")
    config = GenerateConfig(max_new_tokens=96, precision="fp32")
    engine = VllmCompleter(directory, tokenizer, config, stops)
    plain = TransformersCompleter(load_model(directory, torch.float32), tokenizer, config, stops)
    assert (engine.end_tokens, engine.context_length) == (plain.end_tokens, plain.context_length)
    assert engine.complete(prompts, seed=7) == plain.complete(prompts, seed=7)
    engine.config = GenerateConfig(max_new_tokens=48, precision="fp32", temperature=1.0, top_p=0.9)
    first = engine.complete(prompts[:20], seed=3)
    assert engine.complete(prompts[:20], seed=3) == first != engine.complete(prompts[:20], seed=4)


@pytest.mark.usefixtures("stand_in")
def test_every_request_has_its_own_seed(dense: Path) -> None:
    config = GenerateConfig(max_new_tokens=12, temperature=1.0, precision="fp32")
    engine = VllmCompleter(dense, load_tokenizer(dense), config, ())
    same = [PROMPTS[0]] * 3
    first = engine.complete(same, seed=5)
    assert engine.complete(same, seed=5) == first != engine.complete(same, seed=6)
    assert len({completion.text for completion in first}) == 3


@pytest.mark.usefixtures("stand_in")
def test_stage(dense: Path, tmp_path: Path) -> None:
    stages = [
        GenerateStage(
            output=tmp_path / backend, model=str(dense), benchmark=str(benchmark(tmp_path / "own.jsonl", 3)),
            prompt_style="completion",
            generate=GenerateConfig(max_new_tokens=6, precision="fp32", backend=backend))  # type: ignore[arg-type]
        for backend in ("transformers", "vllm")]
    results = [run_stage(stage) for stage in stages]
    assert results[0].manifest.key != results[1].manifest.key
    assert results[0].manifest.digest == results[1].manifest.digest


def test_refused_with_what_to_do(dense: Path, tmp_path: Path) -> None:
    moe = UpcycleStage(
        output=tmp_path / "moe", model=str(dense), upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=2))
    run_stage(moe)
    fields = {"benchmark": str(benchmark(tmp_path / "own.jsonl", 1)), "prompt_style": "completion",
              "generate": GenerateConfig(max_new_tokens=2, backend="vllm")}
    with pytest.raises(CheckpointError, match=r"Mixture-of-Experts.*generate\.backend: transformers"):
        run_stage(GenerateStage(output=tmp_path / "a", model=str(moe.output), **fields))  # type: ignore[arg-type]
    if find_spec("vllm") is None:
        with pytest.raises(RecipeError, match=r"not installed here.*environment that has vLLM"):
            run_stage(GenerateStage(output=tmp_path / "b", model=str(dense), **fields))  # type: ignore[arg-type]
