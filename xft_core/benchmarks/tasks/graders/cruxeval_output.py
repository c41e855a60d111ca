"""CRUXEval-O (Gu et al. 2024): what a Python function returns. Fields of a row, as its file has them: ``code``, ``input``,
``output``. The answer is a literal, or an assertion that ends in one; nothing of it is run.
"""

import ast
from typing import Any


def judge(problem: dict[str, Any], output: Any) -> Any:
    """Whether the answer is the value that the function returns."""
    try:
        found = ast.literal_eval(literal(output))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return {"base": False, "detail": f"{output.strip()[:200]!r} is no Python literal"}
    passed = same(found, ast.literal_eval(problem["output"]))
    return {"base": passed, "detail": "" if passed else f"{found!r} instead of {problem['output']}"}


def literal(answer: str) -> str:
    """The literal of an answer: after ``==`` in an assertion, between the authors' marks, or all of it."""
    text = answer.partition("[ANSWER]")[2] or answer
    text = text.partition("[/ANSWER]")[0].strip()
    if text.startswith("assert ") and " == " in text:
        text = text.partition(" == ")[2]
    return text.strip()


def same(found: Any, expected: Any) -> bool:
    """Whether two values are equal, as the authors' assertion has it."""
    return bool(found == expected)
