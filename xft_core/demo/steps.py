"""The vocabulary of the demo grammar: small typed steps, each with its code and its wordings.

A step turns a value of one type into a value of another. Types are named by the variable that holds them in the
rendered code: ``xs`` (list of ints), ``words`` (list of strings), ``s`` (string), ``n`` (int), ``ok`` (bool, final).

The table is ``steps.txt``: sections ``[src -> dst]`` of rows ``key | expression | wording / wording / wording | noun``.
In an expression the input is ``xs``/``words``/``s``/``n`` itself; ``{k}`` is an integer constant, ``{c}`` a letter and
``{sep}`` a separator. In a noun phrase ``@`` stands for the noun phrase of the input.
"""

from __future__ import annotations

from dataclasses import dataclass

from xft_core.demo import DEMO_DIR

TYPES = {"xs": "list[int]", "words": "list[str]", "s": "str", "n": "int", "ok": "bool"}


@dataclass(frozen=True)
class Step:
    """One step kind: ``src`` -> ``dst``, computed by ``expr`` and described by ``wordings`` or ``noun``."""

    key: str
    src: str
    dst: str
    expr: str
    wordings: tuple[str, ...]
    noun: str

    @property
    def constant(self) -> str:
        """The constant the step takes: "k", "c", "sep", or "" for none."""
        return next((name for name in ("k", "c", "sep") if "{" + name + "}" in self.expr), "")


def _parse(text: str) -> dict[str, Step]:
    """Read the step table; a key defined twice or a row of the wrong shape is an error."""
    steps: dict[str, Step] = {}
    src = dst = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            src, dst = line.strip("[]").split(" -> ")
            continue
        key, expr, wordings, noun = (cell.strip() for cell in line.split(" | "))
        if key in steps:
            raise ValueError(f"step {key} is defined twice in steps.txt")
        steps[key] = Step(key, src, dst, expr, tuple(w.strip() for w in wordings.split(" / ")), noun)
    return steps


STEPS: dict[str, Step] = _parse((DEMO_DIR / "steps.txt").read_text(encoding="utf-8"))
