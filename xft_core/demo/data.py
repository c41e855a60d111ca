"""The three data sets of the demo, as plain rows: pretraining files, instruction data and the benchmark."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from xft_core.demo.grammar import PROBLEM_REQUEST, Task, body, is_held_out, prompt, request, sample_kinds, sample_task
from xft_core.demo.inputs import discriminates, make_inputs

# Shares of compositions of 1, 2 and 3 steps.
PRETRAIN_LENGTHS = (0.35, 0.45, 0.20)
INSTRUCT_LENGTHS = (0.10, 0.45, 0.45)
BENCHMARK_LENGTHS = (0.0, 0.3, 0.7)
# Shares of phrases in the users' wording.
PRETRAIN_USER_SHARE = 0.01
INSTRUCT_USER_SHARE = 0.4
BENCHMARK_USER_SHARE = 0.8
MAX_PROMPT_CHARS = 210  # keeps rows short; about 60 tokens


def _sample(rng: random.Random, lengths: Sequence[float], held_out: bool, user_share: float) -> Task:
    while True:
        kinds = sample_kinds(rng, rng.choices((1, 2, 3), lengths)[0])
        if is_held_out(kinds) == held_out:
            task = sample_task(rng, kinds, user_share)
            if len(prompt(task)) <= MAX_PROMPT_CHARS:
                return task


def pretraining_files(rng: random.Random, functions: int) -> list[list[tuple[str, str]]]:
    """Python files of one to three functions, ``functions`` in all; each function is its prompt and its body."""
    files: list[list[tuple[str, str]]] = []
    while functions > 0:
        size = min(functions, rng.choices((1, 2, 3), (0.8, 0.15, 0.05))[0])
        tasks = [_sample(rng, PRETRAIN_LENGTHS, False, PRETRAIN_USER_SHARE) for _ in range(size)]
        files.append([(prompt(task), body(task)) for task in tasks])
        functions -= size
    return files


def instruction_rows(rng: random.Random, count: int) -> list[dict[str, str]]:
    """Instruction tuning rows: alternating fenced problems and plain-language requests."""
    rows = []
    for i in range(count):
        task = _sample(rng, INSTRUCT_LENGTHS, False, INSTRUCT_USER_SHARE)
        text = prompt(task)
        if i % 2 == 0:
            instruction = PROBLEM_REQUEST.format(prompt=text.strip())
            rows.append({"instruction": instruction, "response": fence(text + body(task))})
        else:
            code = text.split("\n", 1)[0] + "\n" + body(task)
            rows.append({"instruction": request(task, rng), "response": fence(code)})
    return rows


def fence(code: str) -> str:
    """``code`` as a fenced Python block; code ends with a newline."""
    return f"```python\n{code}```"


def benchmark_rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Problems in the EvalPlus (HumanEval+) schema, each with a held-out composition and discriminating inputs."""
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    while len(rows) < count:
        task = _sample(rng, BENCHMARK_LENGTHS, True, BENCHMARK_USER_SHARE)
        base, plus = make_inputs(rng, task)
        if task.kinds in seen or not discriminates(task, plus):
            continue
        seen.add(task.kinds)
        rows.append(
            {
                "task_id": f"Demo/{len(rows)}",
                "prompt": prompt(task),
                "contract": "",
                "canonical_solution": body(task),
                "entry_point": task.name,
                "base_input": base,
                "plus_input": plus,
                "atol": 0,
            }
        )
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines (UTF-8, keys in the order given)."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
