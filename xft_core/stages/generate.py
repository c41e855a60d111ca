"""The generate stage: a model's answers to the problems of one benchmark.

Writes samples.jsonl in the benchmark's order, one line for each sample: see store/results/generate.py.

Batches are fixed before the first is answered, each has its own seed, and each is on disk before the next begins. A killed run
therefore loses at most one batch, and its second start gives the same result as an uninterrupted run.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.benchmarks.benchmark import AnyProblem, Kind
from xft_core.benchmarks.multiple_choice import MultipleChoice
from xft_core.benchmarks.picture_questions import PictureQuestions
from xft_core.benchmarks.progress import Progress
from xft_core.benchmarks.registry import kind_of
from xft_core.data.picture_rows import PictureAsker, load_processor
from xft_core.data.text_tokens import prompt_token_ids
from xft_core.errors import RecipeError
from xft_core.files.digests import canonical_json
from xft_core.files.journal import append, read_appended
from xft_core.generation.completer import Completer
from xft_core.generation.with_pictures import PictureCompleter
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.models.tokenizer_files import reads_pictures
from xft_core.recipe.sections import GenerateConfig
from xft_core.stages.choice_scores import choice_samples
from xft_core.stages.configs import GenerateStage
from xft_core.store.results.generate import SAMPLES, GenerateMetrics, Sample
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)

SampleId = tuple[str, int]


@dataclass(frozen=True)
class Request:
    """One sample to generate."""

    problem: AnyProblem
    sample_index: int
    prompt: str
    token_ids: list[int]
    pictures: dict[str, Any] = field(default_factory=dict)  # a processor's tensors other than the tokens

    @property
    def sample_id(self) -> SampleId:
        """Task id and sample index."""
        return self.problem.task_id, self.sample_index


def run(config: GenerateStage, workspace: Workspace) -> GenerateMetrics:
    """Answer the benchmark's problems.

    Raises DataError, CheckpointError, and RecipeError for a back end that is not installed.
    """
    started = time.monotonic()
    inputs = config.inputs()
    kind = kind_of(inputs["benchmark"])
    problems = kind.load_problems(inputs["benchmark"], config.max_problems)
    tokenizer = load_tokenizer(inputs["model"])
    partial = workspace.checkpoints / "samples.partial.jsonl"
    if isinstance(kind, MultipleChoice):
        scored, done_now = choice_samples(config, kind, problems, tokenizer, partial)
        return finish(workspace, [scored[problem.task_id] for problem in problems], len(problems), done_now, started)
    asks_pictures = isinstance(kind, PictureQuestions) and reads_pictures(inputs["model"])
    asked = asked_about_pictures if asks_pictures else asked_in_text
    batches = make_batches([
        replace(request, sample_index=index)
        for request in asked(kind, problems, config.prompt_style, inputs["model"], tokenizer)
        for index in range(config.generate.num_samples)
    ], config.generate.batch_size)

    samples = {sample.sample_id: sample for sample in map(Sample.model_validate, read_appended(partial))}
    waiting = [batch for batch in batches if any(request.sample_id not in samples for request in batch)]
    problems_before = len(problems) - sum(map(len, waiting)) / config.generate.num_samples
    if waiting:
        completer = open_completer(
            inputs["model"], tokenizer, config.generate, kind.stops(problems, config.prompt_style), asks_pictures)
        progress = Progress(logger, "generate", len(problems), problems_before)
        for batch in waiting:
            finished = answer(completer, kind, batch, config.prompt_style, config.seed)
            append(partial, *(sample.model_dump() for sample in finished))
            samples |= {sample.sample_id: sample for sample in finished}
            progress.advance(len(batch) / config.generate.num_samples)
        progress.close()
    ordered = [
        samples[problem.task_id, index] for problem in problems for index in range(config.generate.num_samples)]
    return finish(workspace, ordered, len(problems), len(problems) - problems_before, started)


def finish(workspace: Workspace, ordered: list[Sample], problems: int, done_now: float, started: float) -> GenerateMetrics:
    """Write the samples, in the benchmark's order. ``done_now``: problems answered since this start."""
    (workspace.output / SAMPLES).write_text("".join(map(_line, ordered)), encoding="utf-8")
    reasons = [sample.finish_reason for sample in ordered]
    seconds = time.monotonic() - started
    return GenerateMetrics(
        problems=problems, samples=len(ordered), new_tokens=sum(sample.new_tokens for sample in ordered),
        truncated=reasons.count("length"), prompt_too_long=reasons.count("prompt_too_long"), seconds=round(seconds, 3),
        problems_per_minute=round(60 * done_now / seconds, 3))


def asked_in_text(
    kind: Kind[Any], problems: list[Any], style: str, model: Path, tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Request]:
    """Yield the first request for each problem."""
    for problem in problems:
        prompt = kind.build_prompt(problem, style, tokenizer)
        yield Request(problem, 0, prompt.text, prompt_token_ids(prompt, tokenizer))


def asked_about_pictures(
    kind: Kind[Any], problems: list[Any], style: str, model: Path, tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Request]:
    """Yield the first request for each problem, through the model's own processor."""
    asker = PictureAsker(load_processor(model), style)
    for problem in problems:
        made = asker.ask(problem.question, problem.pictures)
        yield Request(problem, 0, problem.question, made.input_ids, made.tensors)


def open_completer(
    model: Path, tokenizer: PreTrainedTokenizerBase, config: GenerateConfig, stops: tuple[str, ...],
    asks_pictures: bool = False,
) -> Completer:
    """Open the model directory in the requested back end. Raises CheckpointError, RecipeError."""
    if asks_pictures:
        if config.backend != "transformers":
            raise RecipeError(
                f"generate.backend is {config.backend}, but the benchmark asks about pictures, which only the back end "
                "transformers supports here: set it to transformers.")
        return PictureCompleter(load_model(model, DTYPES[config.precision]), tokenizer, config, stops)
    if config.backend == "vllm":
        from xft_core.generation.with_vllm import VllmCompleter

        return VllmCompleter(model, tokenizer, config, stops)
    return TransformersCompleter(load_model(model, DTYPES[config.precision]), tokenizer, config, stops)


def answer(completer: Completer, kind: Kind[Any], batch: list[Request], style: str, seed: int) -> list[Sample]:
    """Return the samples of one batch."""
    if isinstance(completer, PictureCompleter):
        completer.pictures = [request.pictures for request in batch]
    completions = completer.complete([request.token_ids for request in batch], batch_seed(seed, batch))
    return [
        Sample(task_id=request.problem.task_id, sample_index=request.sample_index, prompt=request.prompt,
               completion=completion.text, solution=kind.solution(request.problem, completion.text, style),
               finish_reason=completion.finish_reason, new_tokens=completion.new_tokens)
        for request, completion in zip(batch, completions, strict=True)]


def make_batches(requests: list[Request], batch_size: int) -> list[list[Request]]:
    """Group requests into batches of similarly long prompts. The longest come first, to reveal too little memory at once."""
    ordered = sorted(requests, key=lambda request: -len(request.token_ids))
    return [ordered[start:start + batch_size] for start in range(0, len(ordered), batch_size)]


def batch_seed(seed: int, batch: list[Request]) -> int:
    """Derive a batch's seed from the stage's seed and the batch's contents, regardless of what was answered before."""
    content = canonical_json([seed, [request.sample_id for request in batch]])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> 1


def _line(sample: Sample) -> str:
    return json.dumps(sample.model_dump(), ensure_ascii=False) + "\n"
