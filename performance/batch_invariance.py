"""Does it matter how many problems a model answers at once? ``python -m performance.batch_invariance MODEL BENCHMARK``

Greedy decoding takes the token with the largest logit. A batch has other shapes and padding, so sums in another order change
the last digits of logits, which only matters if two tokens were that close. This program answers a benchmark one problem at a
time and in batches, counts the answers that differ, and shows how close the two tokens were at the first difference.
Differences the size of rounding errors are ties; larger ones would be an error in the batching.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from xft_core.benchmarks.find import find_benchmark
from xft_core.benchmarks.registry import kind_of
from xft_core.data.text_tokens import prompt_token_ids
from xft_core.errors import XftError
from xft_core.files.locate import find_model
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import GenerateConfig
from xft_core.stages.generate import Request, make_batches


@dataclass(frozen=True)
class Parting:
    """An answer that differs in a batch: the first token that differs, and how much larger the logit of the token chosen alone
    is than that of the other token. ``scale``: the largest absolute logit."""

    task_id: str
    position: int
    logit_gap: float
    scale: float


def partings(completer: TransformersCompleter, requests: Sequence[Request], batch_size: int) -> list[Parting]:
    """Return the answers to ``requests`` that differ between batches of ``batch_size`` and one at a time, with greedy
    decoding."""
    alone, together = (_answers(completer, requests, size) for size in (1, batch_size))
    found = []
    for request in requests:
        one, other = alone[request.sample_id], together[request.sample_id]
        if one == other:
            continue
        position = next(
            (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        logits_V = _next_logits(completer, [*request.token_ids, *one[:position]])
        # A longer answer differs from the other one only after its end, which no logit explains.
        ended = position in (len(one), len(other))
        gap = float("inf") if ended else float(logits_V[one[position]] - logits_V[other[position]])
        found.append(Parting(request.problem.task_id, position, gap, float(logits_V.abs().max())))
    return found


def _answers(
    completer: TransformersCompleter, requests: Sequence[Request], batch_size: int,
) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for batch in make_batches(list(requests), batch_size):
        prompts = [request.token_ids for request in batch]
        written = completer.write(prompts, [completer.room(prompt) for prompt in prompts], seed=0)
        found |= {request.sample_id: tokens for request, tokens in zip(batch, written, strict=True)}
    return found


@torch.inference_mode()
def _next_logits(completer: TransformersCompleter, tokens: list[int]) -> torch.Tensor:
    logits_V: torch.Tensor = completer.model(torch.tensor([tokens], device=completer.device)).logits[0, -1].float()
    return logits_V


def main(arguments: list[str] | None = None) -> int:
    """Print a JSON report; exit status 0, or 2 for an error that the message explains."""
    parser = argparse.ArgumentParser(prog="python -m performance.batch_invariance", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("benchmark")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-problems", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--prompt-style", choices=("magicoder", "chat", "completion"), default="completion")
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(_report(options), indent=1))
        return 0
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _report(options: argparse.Namespace) -> dict[str, object]:
    benchmark, model = find_benchmark(options.benchmark), find_model(options.model)
    kind, tokenizer = kind_of(benchmark), load_tokenizer(model)
    problems = kind.load_problems(benchmark, options.max_problems)
    config = GenerateConfig(max_new_tokens=options.max_new_tokens, precision=options.precision)
    completer = TransformersCompleter(
        load_model(model, DTYPES[options.precision]), tokenizer, config, kind.stops(problems, options.prompt_style))
    requests = []
    for problem in problems:
        prompt = kind.build_prompt(problem, options.prompt_style, tokenizer)
        requests.append(Request(problem, 0, prompt.text, prompt_token_ids(prompt, tokenizer)))
    requests = [request for request in requests if completer.room(request.token_ids)]
    found = partings(completer, requests, options.batch_size)
    return {
        "model": Path(options.model).name, "benchmark": benchmark.name, "precision": options.precision,
        "batch_size": options.batch_size, "problems": len(requests), "different": len(found),
        "largest_logit_gap": max((item.logit_gap for item in found), default=0.0),
        "answers": [vars(item) for item in found]}


if __name__ == "__main__":
    sys.exit(main())
