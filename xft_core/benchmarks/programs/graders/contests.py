"""LiveCodeBench's form (Jain et al. 2024): a program that reads standard input, or a function, and tests with expected outputs.
The answer runs without the expected outputs; another process compares them.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from decimal import Decimal, InvalidOperation
from typing import Any

OUTPUT_BYTES = 2**19  # of all tests together, which are handed over as text
PRELUDE = "import bisect, collections, functools, heapq, itertools, math, random, re, string, sys\n" + "".join(
    f"from {name} import *\n" for name in ("typing", "collections", "functools", "heapq", "itertools", "bisect", "math"))


def execute(problem: Any, answer: Any) -> Any:
    """The answer's result for each input, up to the first that it fails on: ["output", text] or ["value", JSON], or
    ["failed", reason]."""
    outputs: list[Any] = []
    for text in problem["inputs"]:
        found = by_function(problem, answer, text) if problem["function"] else by_program(answer, text)
        outputs.append(found)
        if found[0] == "failed" or sum(len(str(item)) for item in outputs) > OUTPUT_BYTES:
            break
    return outputs


def by_program(answer: Any, text: Any) -> Any:
    """Run the program in a fork, with the text as its standard input."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
        given.write(text.encode())
        given.seek(0)
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.dup2(given.fileno(), 0)
                os.dup2(written.fileno(), 1)
                status = in_child(answer)
            os._exit(status)
        _, ended = os.waitpid(child, 0)
        if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) in (signal.SIGXCPU, signal.SIGKILL):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGXCPU)  # which the grader distinguishes from a failure
        if ended:
            return ["failed", f"its program ended with status {os.waitstatus_to_exitcode(ended)}"]
        written.seek(0)
        return ["output", written.read(OUTPUT_BYTES).decode(errors="replace")]


def in_child(answer: Any) -> int:
    """Run the program as a script, and return its exit status."""
    sys.stdin, sys.stdout = open(0, encoding="utf-8", closefd=False), open(1, "w", encoding="utf-8", closefd=False)
    try:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(PRELUDE, space)  # as the authors' grader does
        exec(compile(answer, "program.py", "exec"), space)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException:
        status = 1
    sys.stdout.flush()
    return status


def by_function(problem: Any, answer: Any, text: Any) -> Any:
    """Call the function, from the class Solution if there is one, with the arguments of an input: JSON, one per line."""
    space: dict[str, Any] = {"__name__": "program"}
    exec(PRELUDE, space)
    exec(compile(answer, "program.py", "exec"), space)
    owner = space["Solution"]() if "Solution" in space else None
    function = getattr(owner, problem["function"]) if owner is not None else space[problem["function"]]
    arguments = [json.loads(line) for line in text.split("\n") if line.strip()]
    try:
        return ["value", json.loads(json.dumps(function(*arguments)))]
    except Exception as error:
        return ["failed", f"{type(error).__name__}: {error}"[:300]]


def judge(problem: Any, output: Any) -> Any:
    """Whether every output is as expected."""
    expected = problem["outputs"]
    if not isinstance(output, list):
        return {"base": False, "detail": "it gave no outputs"}
    for place, wanted in enumerate(expected):
        if place >= len(output):
            return {"base": False, "detail": f"no output for test {place + 1} of {len(expected)}"}
        kind, found = output[place]
        if kind == "failed":
            return {"base": False, "detail": f"test {place + 1}: {found}"}
        right = found == json.loads(wanted) if kind == "value" else same_text(str(found), wanted)
        if not right or (kind == "value") != bool(problem["function"]):
            return {"base": False, "detail": f"test {place + 1}: {str(found)[:150]!r} instead of {wanted[:150]!r}"}
    return {"base": True}


def same_text(found: str, wanted: str) -> bool:
    """Whether two outputs are the same, line by line, without surrounding white space; numbers are compared by value."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (found, wanted)]
    return len(lines[0]) == len(lines[1]) and all(map(same_line, *lines))


def same_line(found: str, wanted: str) -> bool:
    """Whether two lines are the same."""
    if found == wanted:
        return True
    try:
        numbers = [[Decimal(word) for word in line.split()] for line in (found, wanted)]
    except InvalidOperation:
        return False
    return bool(numbers[0] == numbers[1])
