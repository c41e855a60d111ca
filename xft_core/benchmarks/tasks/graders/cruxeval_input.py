"""CRUXEval-I (Gu et al. 2024): arguments with which a Python function returns a value. Fields of a row, as its file has them:
``code``, ``input``, ``output``. The answer is the arguments, or a call of ``f``; they must be literals, so nothing that the
model wrote is run, and a value that is equal to everything cannot be made.
"""

import ast
from typing import Any


def judge(problem: dict[str, Any], output: Any) -> Any:
    """Whether the function returns the value for the answer's arguments."""
    try:
        positional, named = arguments(output)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return {"base": False, "detail": f"{output.strip()[:200]!r} is no list of literals"}
    space: dict[str, Any] = {}
    exec(problem["code"], space)  # of the benchmark's authors
    try:
        found = space["f"](*positional, **named)
    except Exception as error:
        return {"base": False, "detail": f"with these arguments it raises {type(error).__name__}: {error}"}
    passed = bool(found == ast.literal_eval(problem["output"]))
    return {"base": passed, "detail": "" if passed else f"it returns {found!r} instead of {problem['output']}"}


def arguments(answer: str) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments. Raises ValueError for what is no literal."""
    text = answer.partition("[ANSWER]")[2] or answer
    text = text.partition("[/ANSWER]")[0].strip().removeprefix("assert ").strip()
    call = text.partition(" == ")[0] if text.startswith("f(") else f"f({text})"
    if not answer.strip():
        raise ValueError("there is no answer")
    parsed = ast.parse(call, mode="eval").body
    if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name):
        raise ValueError("it is no call")
    if any(keyword.arg is None for keyword in parsed.keywords):
        raise ValueError("** is no literal")
    return ([ast.literal_eval(argument) for argument in parsed.args],
            {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in parsed.keywords})
