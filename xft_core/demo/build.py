"""Build the demo's model, instruction data and benchmark: ``python -m xft_core.demo.build [--out DIR] [--seed 0]``.

The seed determines every file. The data files and the tokenizer are byte-identical from run to run; so is the model as
long as ``--threads`` stays at 1.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch

from xft_core.demo import DEMO_DIR
from xft_core.demo.data import benchmark_rows, instruction_rows, pretraining_files, write_jsonl
from xft_core.demo.pretrain import encode, new_model, pretrain, train_tokenizer
from xft_core.demo.task_rows import TASKS

MAGICODER = (
    "You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable responses "
    "to user instructions.\n\n@@ Instruction\n{instruction}\n\n@@ Response\n{response}"
)
INSTRUCT_ROWS = 2200
BENCHMARK_ROWS = 80
LARGE_BENCHMARK_ROWS = 300  # for studies: enough programs to distinguish two models that differ by 3 points
HELD_OUT_ROWS = 500  # for the study's recipe, which trains on few rows
RESERVED_ROWS = 200
FUNCTIONS = 40_000  # pretraining functions
TOKENIZER_SOURCES = 4_000  # number of pretraining files, from the first on, that train the tokenizer


def write_tasks(out: Path, seed: int) -> None:
    """Write the rows of the shipped tasks to their folders."""
    for name, (make, *counts) in TASKS.items():
        for split, count in zip(("train", "test"), counts, strict=True):
            (out / name).mkdir(parents=True, exist_ok=True)
            rows = make(random.Random(f"{name} {split} {seed}"), count, split == "test")
            write_jsonl(out / name / f"{split}.jsonl", rows)


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEMO_DIR, help="folder for the files built")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the model is reproducible only with 1")
    parser.add_argument("--functions", type=int, default=FUNCTIONS, help="functions in the pretraining corpus")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    build(args.out, args.seed, args.functions)


def build(out: Path, seed: int, functions: int = FUNCTIONS) -> None:
    """Write both benchmarks, ``instruct.jsonl``, ``held_out.jsonl``, ``reserved.jsonl``, the rows of ``tasks/`` and ``model/``
    to ``out``."""
    start = time.time()
    out.mkdir(parents=True, exist_ok=True)
    # Each data set has its own generator, so that resizing one leaves the others unchanged.
    write_jsonl(out / "benchmark.jsonl", benchmark_rows(random.Random(f"benchmark {seed}"), BENCHMARK_ROWS))
    write_jsonl(
        out / f"benchmark_{LARGE_BENCHMARK_ROWS}.jsonl",
        benchmark_rows(random.Random(f"large benchmark {seed}"), LARGE_BENCHMARK_ROWS))
    rows = instruction_rows(random.Random(f"instruct {seed}"), INSTRUCT_ROWS)
    write_jsonl(out / "instruct.jsonl", rows)
    write_jsonl(out / "held_out.jsonl", instruction_rows(random.Random(f"held out {seed}"), HELD_OUT_ROWS))
    write_jsonl(out / "reserved.jsonl", instruction_rows(random.Random(f"reserved {seed}"), RESERVED_ROWS))
    write_tasks(out / "tasks", seed)
    files = pretraining_files(random.Random(f"pretrain {seed}"), functions)
    texts = [prompt + body for functions in files[:TOKENIZER_SOURCES] for prompt, body in functions]
    tokenizer = train_tokenizer([*texts, *(MAGICODER.format(**row) for row in rows)])
    examples = encode(tokenizer, files)
    tokens = sum(len(ids) for ids, _ in examples)
    print(f"{len(files)} files, {tokens} tokens, {time.time() - start:.0f} s", flush=True)
    model = new_model(tokenizer, seed)
    pretrain(model, examples, seed)
    model.to(torch.bfloat16).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    print(f"built in {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
