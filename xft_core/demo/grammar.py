"""The demo grammar: tasks composed of one to three typed steps, rendered as short Python functions with docstrings.

A *composition* is the sequence of step kinds, irrespective of constants and wording. ``is_held_out`` marks a fixed
quarter of the longer compositions. The corpora never contain them, and the benchmark contains nothing else.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from xft_core.demo.steps import STEPS, TYPES, Step

ARGUMENTS = {"xs": "the list of numbers xs", "words": "the list of words", "s": "the string s", "n": "the number n"}
VERBS = ("get", "find", "compute", "make", "take")
WORDINGS = ("sequence", "sentences", "numbered", "noun")
SEPARATORS = ("', '", "'-'", "' '", "'; '", "'/'")
HELD_OUT_SHARE = 4  # one composition in this many is held out
PROBLEM_REQUEST = "Write a solution to the following problem:\n```python\n{prompt}\n```"


@dataclass(frozen=True)
class Task:
    """A composition with its constants (as code text, "" where a step takes none), a name and a wording."""

    kinds: tuple[str, ...]
    constants: tuple[str, ...]
    name: str
    wording: str
    variants: tuple[int, ...]

    @property
    def steps(self) -> list[Step]:
        return [STEPS[kind] for kind in self.kinds]


def is_held_out(kinds: Sequence[str]) -> bool:
    """Whether a composition is reserved for the benchmark (single steps never are)."""
    return len(kinds) > 1 and zlib.crc32(" ".join(kinds).encode()) % HELD_OUT_SHARE == 0


def sample_kinds(rng: random.Random, length: int) -> tuple[str, ...]:
    """A random chain of distinct step kinds in which each step takes what the one before it gives."""
    while True:
        source = rng.choice(("xs", "xs", "words", "words", "s", "s", "n"))
        kinds: list[str] = []
        for _ in range(length):
            options = [s for s in STEPS.values() if s.src == source and s.key not in kinds]
            if not options:
                break
            if rng.random() < 0.3:  # sometimes weight result types equally, so that type changes stay common
                result = rng.choice(sorted({s.dst for s in options}))
                options = [s for s in options if s.dst == result]
            step = rng.choice(options)
            kinds.append(step.key)
            source = step.dst
        if len(kinds) == length:
            return tuple(kinds)


def sample_constant(rng: random.Random, step: Step) -> str:
    """A constant for ``step`` as written in both code and text."""
    if step.constant == "k":
        return str(rng.randint(2, 9))
    if step.constant == "c":
        return repr(rng.choice("aeinorst"))
    return rng.choice(SEPARATORS) if step.constant == "sep" else ""


def sample_task(rng: random.Random, kinds: tuple[str, ...], user_share: float) -> Task:
    """Dress a composition with constants, a name and a wording; ``user_share`` of the phrases use the third wording.

    The third wording is how users speak. The pretraining corpus has little of it, so that instruction tuning has
    something to teach: which known step an unfamiliar phrase asks for.
    """
    steps = [STEPS[kind] for kind in kinds]
    constants = tuple(sample_constant(rng, step) for step in steps)
    named = sorted(rng.sample(range(len(kinds)), min(len(kinds), rng.randint(1, 2))))
    name = "_".join([rng.choice(VERBS), *(kinds[i] for i in named)])
    variants = tuple(2 if rng.random() < user_share else rng.randrange(2) for _ in steps)
    return Task(kinds, constants, name, rng.choice(WORDINGS), variants)


def _fill(template: str, constant: str) -> str:
    return template.replace("{k}", constant).replace("{c}", constant).replace("{sep}", constant)


def phrases(task: Task) -> list[str]:
    """One imperative phrase for each step."""
    chosen = zip(task.steps, task.variants, task.constants, strict=True)
    return [_fill(step.wordings[variant], constant) for step, variant, constant in chosen]


def noun_phrase(task: Task) -> str:
    """The whole computation as one noun phrase, last step outermost: "the sum of the squares of xs"."""
    text = task.steps[0].src
    for step, constant in zip(task.steps, task.constants, strict=True):
        text = _fill(step.noun, constant).replace("@", text)
    return text


def signature(task: Task) -> str:
    """``name(xs: list[int]) -> int`` without "def" and colon."""
    source, result = task.steps[0].src, task.steps[-1].dst
    return f"{task.name}({source}: {TYPES[source]}) -> {TYPES[result]}"


def docstring(task: Task) -> str:
    """The description of the task in its wording; one to four lines, unindented."""
    parts, source = phrases(task), task.steps[0].src
    if task.wording == "noun":
        return f"Return {noun_phrase(task)}."
    if task.wording == "numbered":
        lines = [f"{i}. {part}" for i, part in enumerate(parts, 1)]
        return "\n".join([f"For {ARGUMENTS[source]}:", *lines]) if len(parts) > 1 else f"For {source}, {parts[0]}."
    if task.wording == "sentences":
        middle = "".join(f" Then {part}." for part in parts[1:])
        return f"Take {ARGUMENTS[source]} and {parts[0]}.{middle}"
    first = parts[0][0].upper() + parts[0][1:]
    return ", then ".join([first, *parts[1:]]) + " and return the result."


def prompt(task: Task) -> str:
    """Signature and docstring; ends with a newline, as HumanEval prompts do."""
    lines = docstring(task).split("\n")
    text = "\n    ".join(lines)
    close = '"""' if len(lines) == 1 else '\n    """'
    return f'def {signature(task)}:\n    """{text}{close}\n'


def body(task: Task) -> str:
    """The canonical solution: one assignment for each step, the last one returned; indented by four."""
    lines = []
    for step, constant in zip(task.steps, task.constants, strict=True):
        lines.append(f"    {step.dst} = {_fill(step.expr, constant)}")
    lines[-1] = "    return " + lines[-1].split(" = ", 1)[1]
    return "\n".join(lines) + "\n"


def request(task: Task, rng: random.Random) -> str:
    """A request for the function in plain language, without the fenced prompt."""
    if task.wording == "noun":
        return f"Write a Python function `{signature(task)}` that returns {noun_phrase(task)}."
    head = rng.choice(("Write a Python function `{}` for these steps:", "Implement `{}` as follows:"))
    return f"{head.format(signature(task))} {', then '.join(phrases(task))}."
