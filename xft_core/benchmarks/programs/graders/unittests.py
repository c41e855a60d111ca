"""BigCodeBench's form: a program and, in the same module, a unittest.TestCase for it (Zhuo et al. 2024).

The tests must run in one process with the program, because they patch its libraries. An answer passes if all tests finish,
none is skipped, and a word drawn for this one run is handed over. A program that ends the process, prints a verdict or changes
unittest does not pass; a program that searches the process's memory for the word can.
"""

import os
import unittest
from typing import Any


def execute(problem: Any, answer: Any) -> Any:
    """The result of the tests on the answer."""
    os.environ |= {"MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp"}
    word = problem["word"]
    kept = state()
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(answer, "program.py", "exec"), space)
    if problem["entry_point"] not in space:
        raise NameError(f"there is no {problem['entry_point']}")
    before = set(map(id, space.values()))
    exec(compile(problem["test"], "test.py", "exec"), space)
    cases = [
        value for value in space.values()
        if isinstance(value, type) and issubclass(value, unittest.TestCase) and id(value) not in before]
    suite = unittest.TestSuite(unittest.TestLoader().loadTestsFromTestCase(case) for case in cases)
    result = unittest.TestResult()
    suite.run(result)
    if state() != kept:
        raise RuntimeError("it changed unittest")
    wrong = [*result.failures, *result.errors]
    if wrong:
        detail = f"{wrong[0][0]}: {wrong[0][1].strip().splitlines()[-1]}"
    else:
        detail = "no test ran" if not result.testsRun else "a test was skipped" if result.skipped else ""
    passed = result.testsRun > 0 and result.wasSuccessful() and not result.skipped and not result.expectedFailures
    return {"word": word, "passed": passed, "detail": detail[:400]}


def judge(problem: Any, output: Any) -> Any:
    """Whether the tests finished and passed."""
    if not isinstance(output, dict) or output.get("word") != problem["word"]:
        return {"base": False, "detail": "the tests did not come to their end"}
    return {"base": output.get("passed") is True, "detail": str(output.get("detail", ""))}


def state() -> Any:
    """The names that a program could rebind so that any test passes."""
    classes = (unittest.TestCase, unittest.TestResult, unittest.TestSuite, unittest.TestLoader)
    return [{name: id(value) for name, value in vars(kind).items()} for kind in classes]
