"""HumanEval's form: a function ``check(candidate)`` with assertions. The tests never run in one process with the answer.

First the tests run with the reference solution, and the calls of ``candidate`` are recorded. Then the answer's function gets
the same arguments in another sandbox, without the tests. Finally the tests run again, with a candidate that returns the
answer's results.
"""

import ast
import builtins
import random
from typing import Any

SCALARS = (bool, int, str, type(None))
SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class NotAValue(Exception):
    """An object that cannot be passed from one sandbox to another."""


def execute(problem: Any, answer: Any) -> Any:
    """The calls that the problem's tests make, if it has ``test``; otherwise the answer's results for the ``calls``."""
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(answer, "program.py", "exec"), space)
    function = space[problem["entry_point"]]
    if "test" in problem:
        return recorded(problem, function)
    outcomes = []
    for arguments, named in problem["calls"]:
        try:
            outcomes.append(["value", packed(function(*unpacked(arguments), **unpacked(named)))])
        except NotAValue as error:
            outcomes.append(["other", str(error)])
        except Exception as error:
            outcomes.append(["raised", type(error).__name__, str(error)[:200]])
    return outcomes


def recorded(problem: Any, function: Any) -> Any:
    """The arguments of every call."""
    calls = []

    def candidate(*arguments: Any, **named: Any) -> Any:
        calls.append([packed(arguments), packed(named)])
        return function(*arguments, **named)

    run_tests(problem, candidate)
    return calls


def judge(problem: Any, output: Any) -> Any:
    """Whether the tests pass with the answer's results."""
    outcomes = iter(output)

    def candidate(*arguments: Any, **named: Any) -> Any:
        kind, *content = next(outcomes)
        if kind == "value":
            return unpacked(content[0])
        if kind == "other":
            raise AssertionError(f"it returns {content[0]}")
        found = getattr(builtins, str(content[0]), None)
        raise (found if isinstance(found, type) and issubclass(found, Exception) else Exception)(content[1])

    try:
        run_tests(problem, candidate)
    except Exception as error:
        return {"base": False, "detail": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
    return {"base": True}


def run_tests(problem: Any, candidate: Any) -> Any:
    """Run the benchmark's own tests, with the reference program's definitions."""
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(problem["prompt"] + problem["canonical_solution"], "reference.py", "exec"), space)
    exec(compile(problem["test"], "test.py", "exec"), space)
    random.seed(0)
    space["check"](candidate)


def packed(value: Any, depth: int = 0) -> Any:
    """A value as JSON that keeps its type. Raises NotAValue if it is not a plain value."""
    if depth > 50:
        raise NotAValue("a value within more than 50 others")
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind in (float, complex, bytes):
        return [kind.__name__, repr(value)]
    if kind.__name__ in SEQUENCES and kind is SEQUENCES[kind.__name__]:
        return [kind.__name__, [packed(item, depth + 1) for item in value]]
    if kind is dict:
        return ["dict", [[packed(name, depth + 1), packed(item, depth + 1)] for name, item in value.items()]]
    raise NotAValue(f"an object of class {kind.__name__[:100]}")


def unpacked(content: Any) -> Any:
    """The value from its packed form."""
    if not isinstance(content, list):
        return content
    kind, inner = content
    if kind in ("float", "complex"):
        return {"float": float, "complex": complex}[kind](inner)
    if kind == "bytes":
        return ast.literal_eval(inner)
    if kind == "dict":
        return {unpacked(name): unpacked(item) for name, item in inner}
    return SEQUENCES[kind](map(unpacked, inner))
