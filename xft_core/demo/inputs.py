"""Test inputs for demo tasks, and the check that they distinguish a correct program from nearly correct ones."""

from __future__ import annotations

import random
from typing import Any

from xft_core.demo.grammar import Task, body
from xft_core.demo.steps import STEPS

_WORDS = ("stone", "art", "rain", "noon", "Tree", "sea", "iron", "tea", "onion", "oats", "is", "nest", "train", "eerie")
_EDGES: dict[str, list[Any]] = {
    "xs": [[], [0], [-3], [5, 5, 5], list(range(1, 13)), [-4, -2, -7]],
    "words": [[], [""], ["a"], ["art", "art", "tea"], ["Iron", "IRON", "iron"]],
    "s": ["", " ", "a", "noon", "Rain, tea,oats", "  sea 42  "],
    "n": [0, 1, -1, 9, 10, -128],
}


def _random_value(rng: random.Random, kind: str) -> Any:
    if kind == "xs":
        return [rng.randint(-12, 20) for _ in range(rng.randint(2, 12))]
    if kind == "words":
        return [rng.choice(_WORDS) for _ in range(rng.randint(2, 9))]
    if kind == "s":
        pieces = [rng.choice((*_WORDS, str(rng.randint(0, 99)))) for _ in range(rng.randint(1, 5))]
        return rng.choice((" ", ",", "")).join(pieces)
    return rng.randint(-60, 300)


def make_inputs(rng: random.Random, task: Task, base: int = 5, plus: int = 30) -> tuple[list[Any], list[Any]]:
    """``base`` ordinary argument lists and ``plus`` further ones; edge cases come first among the latter."""
    source = task.steps[0].src
    values = [_random_value(rng, source) for _ in range(base)]
    extra = list(_EDGES[source])
    while len(extra) < plus:
        extra.append(_random_value(rng, source))
    return [[value] for value in values], [[value] for value in extra]


def run_task(task: Task, inputs: list[Any]) -> list[Any]:
    """The canonical outputs of ``task``; an input on which it fails is an error in the step table."""
    source = task.steps[0].src
    scope: dict[str, Any] = {}
    exec(f"def solution({source}):\n{body(task)}", scope)
    return [scope["solution"](*arguments) for arguments in inputs]


def mutants(task: Task) -> list[Task]:
    """Nearly correct programs: a step left out, or an integer constant off by one."""
    result = []
    pairs = list(zip(task.kinds, task.constants, strict=True))
    for i, (kind, constant) in enumerate(pairs):
        if len(pairs) > 1 and STEPS[kind].src == STEPS[kind].dst:
            result.append(pairs[:i] + pairs[i + 1 :])
        if constant.isdigit():
            result += [[*pairs[:i], (kind, str(int(constant) + d)), *pairs[i + 1:]] for d in (-1, 1)]
    return [
        Task(tuple(kind for kind, _ in chain), tuple(constant for _, constant in chain), task.name, task.wording,
             (0,) * len(chain))
        for chain in result]


def discriminates(task: Task, inputs: list[Any]) -> bool:
    """Whether the outputs vary enough and every mutant gives a wrong output on at least one input."""
    expected = run_task(task, inputs)
    if len({repr(value) for value in expected}) < 2:
        return False
    return all(run_task(mutant, inputs) != expected for mutant in mutants(task))
