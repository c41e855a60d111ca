"""Calibration of the demo: pass@1 of the base, then after a short plain SFT.

``python -m xft_core.demo.measure [--dir DIR]`` was used to tune the mixture in ``data.py``: the base should solve some of
the benchmark, SFT clearly more, and neither all of it. It is deliberately independent of the pipeline's own trainer and
evaluator, as a cross-check on both.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
from evalplus.eval import untrusted_check
from evalplus.gen.util import trusted_exec
from transformers import AutoModelForCausalLM, AutoTokenizer

from xft_core.demo import DEMO_DIR
from xft_core.demo.build import MAGICODER
from xft_core.demo.data import read_jsonl
from xft_core.demo.grammar import PROBLEM_REQUEST

NEW_TOKENS = 128
END_OF_FUNCTION = re.compile(r"\n(?=def |class |@|if __name__|print\(|```)|```|</s>")


def magicoder_prefix(prompt: str) -> str:
    """The evaluation text for a benchmark prompt in the magicoder form, response prefilled."""
    instruction = PROBLEM_REQUEST.format(prompt=prompt.strip())
    return MAGICODER.format(instruction=instruction, response="```python\n" + prompt)


@torch.no_grad()
def complete(model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    """Greedy continuations of all texts in one left-padded batch, each cut where the function ends."""
    encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids, mask, cache = encoded["input_ids"], encoded["attention_mask"], None
    length, fed = ids.shape[1], ids
    for step in range(NEW_TOKENS):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        out = model(input_ids=fed, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, fed], 1), torch.cat([mask, torch.ones_like(fed)], 1)
        if step % 8 == 7 and all(END_OF_FUNCTION.search(text) for text in tokenizer.batch_decode(ids[:, length:])):
            break
    return [END_OF_FUNCTION.split(text, maxsplit=1)[0] + "\n" for text in tokenizer.batch_decode(ids[:, length:])]


def passes(problem: dict[str, Any], completion: str) -> tuple[bool, bool]:
    """Whether prompt + completion passes the base inputs, and base and plus inputs both."""
    results = []
    for inputs in (problem["base_input"], problem["plus_input"]):
        reference = problem["prompt"] + problem["canonical_solution"]
        expected, times = trusted_exec(reference, inputs, problem["entry_point"], record_time=True)
        code = problem["prompt"] + completion
        status, _ = untrusted_check("humaneval", code, inputs, problem["entry_point"], expected, 0, times)
        results.append(status == "pass")
    return results[0], all(results)


def score(model: Any, tokenizer: Any, problems: list[dict[str, Any]], form: str) -> str:
    """pass@1 on base and on base + plus inputs in the given prompt form, as a line of text."""
    start = time.time()
    texts = [p["prompt"] if form == "completion" else magicoder_prefix(p["prompt"]) for p in problems]
    completions = complete(model, tokenizer, texts)
    generated = time.time() - start
    results = [passes(p, c) for p, c in zip(problems, completions, strict=True)]
    base, plus = (100 * sum(r[i] for r in results) / len(results) for i in (0, 1))
    return f"{form}: base {base:.1f} % plus {plus:.1f} % ({generated:.0f} s generation, {time.time() - start:.0f} s)"


def quick_sft(model: Any, tokenizer: Any, rows: list[dict[str, str]], lr: float, epochs: int, batch: int) -> str:
    """Plain fp32 AdamW over the instruction rows, loss on response and eos, linear decay of the learning rate."""
    start, examples = time.time(), []
    for row in rows:
        head = tokenizer(MAGICODER.format(**row | {"response": ""}), add_special_tokens=False)["input_ids"]
        tail = [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        examples.append((head + tail, [-100] * len(head) + tail))
    rng, order = random.Random(0), []
    for _ in range(epochs):
        order += rng.sample(examples, len(examples))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    model.train()
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([i + [tokenizer.pad_token_id] * (width - len(i)) for i, _ in part])
        labels = torch.tensor([t + [-100] * (width - len(t)) for _, t in part])
        mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in part])
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (at / batch + 1) / 10) * (1 - at / len(order))
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    sizes = [len(ids) for ids, _ in examples]
    spent = f"{time.time() - start:.0f} s, tokens a row mean {sum(sizes) / len(sizes):.0f} max {max(sizes)}"
    return f"SFT lr {lr} epochs {epochs} batch {batch}: {spent}"


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=DEMO_DIR, help="folder that build.py wrote")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.dir / "model")
    model = AutoModelForCausalLM.from_pretrained(args.dir / "model", dtype=torch.float32).eval()
    problems = read_jsonl(args.dir / "benchmark.jsonl")
    for form in ("completion", "magicoder"):
        print("base,", score(model, tokenizer, problems, form), flush=True)
    print(quick_sft(model, tokenizer, read_jsonl(args.dir / "instruct.jsonl"), args.lr, args.epochs, args.batch))
    for form in ("completion", "magicoder"):
        print("SFT,", score(model, tokenizer, problems, form), flush=True)


if __name__ == "__main__":
    main()
