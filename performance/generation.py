"""Compare greedy completions of HumanEval problems per minute with evalplus's own ``hf`` backend.

    python -m performance.generation BENCHMARK.jsonl.gz [--model DIR] [--problems 32] [--tokens 256] [--batch 16] [--repeats 2]

Both use the same model in fp32, the same prompts (the problem's code) and the same stops, in turns, after loading. Also prints
how many completions are equal, and for the others, how far the likeliest token was from the second at the first difference.

evalplus 0.3.1 adds each problem's stops to those of all earlier problems, whose prompts had other lengths. So it gets slower,
and may find a stop in the prompt itself. In favour of evalplus, every problem here starts without the others' stops.
"""

import argparse
import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import torch

from performance.side_by_side import print_heading, print_table, side_by_side
from xft_core.benchmarks.evalplus.benchmark import EvalPlus
from xft_core.benchmarks.evalplus.prompts import problem_code
from xft_core.benchmarks.prompts import cut
from xft_core.demo import DEMO_DIR
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import GenerateConfig


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("--model", type=Path, default=DEMO_DIR / "model", help="default: the demo's")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    from evalplus.provider.hf import HuggingFaceDecoder

    with contextlib.redirect_stdout(io.StringIO()):
        decoder = HuggingFaceDecoder(
            str(options.model), "humaneval", force_base_prompt=True, temperature=0.0, dtype="float32",
            max_new_tokens=options.tokens)
    config = GenerateConfig(max_new_tokens=options.tokens, batch_size=options.batch, precision="fp32")
    completer = TransformersCompleter(
        load_model(options.model, torch.float32), load_tokenizer(options.model), config, tuple(decoder.eos))
    prompts = [problem_code(problem) for problem in EvalPlus().load_problems(options.benchmark, options.problems)]
    written: dict[str, list[str]] = {}
    print_heading(
        f"Generation, {options.model.name}, {len(prompts)} problems, at most {options.tokens} tokens, batches of "
        f"{options.batch}")
    taken = side_by_side({
        "evalplus hf": partial(_by_evalplus, decoder, prompts, written), "ours": partial(_by_us, completer, prompts, written),
    }, options.repeats, warm_up=False)
    theirs = taken["evalplus hf"]
    print_table(
        ["way", "seconds", "problems/min", "CPU seconds", "ratio", "by CPU time"],
        [[name, item.seconds, 60 * len(prompts) / item.seconds, item.cpu_seconds, theirs.seconds / item.seconds,
          theirs.cpu_seconds / item.cpu_seconds] for name, item in taken.items()])
    pairs = list(zip(prompts, written["evalplus hf"], written["ours"], strict=True))
    margins = [_margin(completer, prompt, a, b) for prompt, a, b in pairs if a != b]
    print(f"{len(pairs) - len(margins)} of {len(pairs)} completions are equal.")
    if margins:
        print(f"Where the others part, the two likeliest tokens are at most {max(margins):.1e} nats apart.")


def _by_evalplus(decoder: Any, prompts: list[str], written: dict[str, list[str]]) -> None:
    written["evalplus hf"] = []
    for prompt in prompts:
        vars(decoder.model).pop("_get_stopping_criteria", None)
        written["evalplus hf"] += decoder.codegen(prompt, do_sample=False, num_samples=1)


def _by_us(completer: TransformersCompleter, prompts: list[str], written: dict[str, list[str]]) -> None:
    ids = [completer.tokenizer(prompt).input_ids for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), completer.config.batch_size):
        batch = order[start:start + completer.config.batch_size]
        for index, completion in zip(batch, completer.complete([ids[index] for index in batch], 0), strict=True):
            texts[index] = cut(completion.text, completer.stops).replace("\t", "    ")
    written["ours"] = [texts[index] for index in range(len(prompts))]


@torch.inference_mode()
def _margin(completer: TransformersCompleter, prompt: str, first: str, second: str) -> float:
    """Return the difference of the two largest log-probabilities at the first token where two completions differ."""
    ids = [completer.tokenizer(prompt + text).input_ids for text in (first, second)]
    same = next((place for place, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
    logits = completer.model(torch.tensor([ids[0][:same]], device=completer.device)).logits[0, -1]
    largest = torch.log_softmax(logits.float(), dim=-1).topk(2).values
    return float(largest[0] - largest[1])


if __name__ == "__main__":
    main()
