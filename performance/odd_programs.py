"""The programs of odd_programs.txt, and the problems they answer."""

import re
from pathlib import Path

from xft_core.benchmarks.evalplus.problems import Problem

TEXT = Path(__file__).with_name("odd_programs.txt")
PROBLEMS = {problem.task_id.removeprefix("Odd/"): problem for problem in (
    Problem("Odd/int", "def f(x):\n", "f", "    return x * x + 1\n", [[3], [0]], [[-7], [10**6]]),
    Problem("Odd/list", "def f(xs):\n", "f", "    return sorted(xs)\n", [[[3, 1, 2]], [[]]], [[[5, 5, -1]]]),
    Problem("Odd/text", "def f(s):\n", "f", "    return s[::-1]\n", [["abc"], [""]], [["héllo wörld"]]),
    Problem("Odd/counts", "def f(s):\n", "f", "    return {c: s.count(c) for c in s}\n", [["aab"], [""]], [["xyzzy"]]),
    Problem("Odd/third", "def f(x):\n", "f", "    return x / 3\n", [[1.0], [2]], [[10.0]]),
    Problem("Odd/pair", "def f(xs):\n", "f", "    return min(xs), max(xs)\n", [[[3, 1, 2]]], [[[5, 5, -1]]]),
    Problem("Odd/unique", "def f(xs):\n", "f", "    return set(xs)\n", [[[3, 1, 3]]], [[[5, 5, -1]]]),
    Problem("Odd/flag", "def f(x):\n", "f", "    return x % 2 == 0\n", [[1], [2]], [[3]]),
    Problem("Odd/raw", "def f(s):\n", "f", "    return s.encode()\n", [["abc"]], [["é"]]))}

# Programs that get another verdict here than in stock evalplus, and why.
KNOWN = {
    "int: an object with __eq__": "an object of a class that is none of Python's usual ones is equal to nothing"}


def odd_programs() -> dict[str, dict[str, str]]:
    """Return programs by problem, then by what is odd about them."""
    found: dict[str, dict[str, str]] = {name: {} for name in PROBLEMS}
    for header, program in re.findall(r"^=== (.*)\n((?:(?!===).*\n)+)", TEXT.read_text(encoding="utf-8"), re.MULTILINE):
        problem, _, name = header.partition(": ")
        assert name not in found[problem], header
        found[problem][name] = program
    return found
