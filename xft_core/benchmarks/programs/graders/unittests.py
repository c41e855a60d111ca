"""BigCodeBench's form: a program and, in the same module, a unittest.TestCase about it (Zhuo et al. 2024).

The tests must run beside the program, whose libraries they patch. An answer has passed when all tests came to their end, none
skipped, and a word was handed over that is drawn for this one run. A program that ends the process, prints a verdict or changes
unittest has not passed; one that searches the memory of the process for the word can.
"""

import os
import unittest
from typing import Any


def execute(problem: Any, answer: Any) -> Any:
    """What the tests say of the answer."""
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
    """Whether the tests came to their end, and passed."""
    if not isinstance(output, dict) or output.get("word") != problem["word"]:
        return {"base": False, "detail": "the tests did not come to their end"}
    return {"base": output.get("passed") is True, "detail": str(output.get("detail", ""))}


def state() -> Any:
    """What a program could rebind so that any test passes."""
    classes = (unittest.TestCase, unittest.TestResult, unittest.TestSuite, unittest.TestLoader)
    return [{name: id(value) for name, value in vars(kind).items()} for kind in classes]
