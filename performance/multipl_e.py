"""Measure grading time for each language: complete MultiPL-E files, with answers that compile and fail their first test.

    python -m performance.multipl_e DIRECTORY [LANGUAGE ...] [--problems N]

``processor`` is measured without the sandbox, whose processes do not report their time. That is safe, because the answers come
from this file.
"""

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path

from xft_core.benchmarks.benchmark import NotGradable
from xft_core.benchmarks.multipl_e.benchmark import MultiPLE
from xft_core.benchmarks.multipl_e.grading import MultiPLEGrader
from xft_core.recipe.sections import EvaluateConfig
from xft_core.runtime.cores import cores
from xft_core.stages.evaluate import grade_all

STUBS = {
    "js": "  return null;\n}", "ts": "  return null as any;\n}", "php": "    return null;\n}", "rb": "  nil\nend",
    "lua": "    return nil\nend", "pl": "    return undef;\n}", "sh": "    echo none\n", "cpp": "    std::abort();\n",
    "java": "        throw new RuntimeException();\n", "rs": "    todo!()\n", "go": '    panic("none")\n}'}
ALONE = 8  # problems for the processor time of one program


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="directory with humaneval-LANGUAGE.jsonl")
    parser.add_argument("languages", nargs="*", help="default: all")
    parser.add_argument("--problems", type=int, help="only the first N problems of each file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| language | programs | seconds in all | processor seconds each | not failed, or not compiled |")
    print("|---|--:|--:|--:|--:|")
    for language in options.languages or STUBS:
        try:
            print(measure(options.directory / f"humaneval-{language}.jsonl", language, options.problems), flush=True)
        except NotGradable as reason:
            print(f"| {language} | {reason} |")


def measure(path: Path, language: str, most: int | None) -> str:
    """Return one line of the table."""
    kind = MultiPLE()
    problems = kind.load_problems(path, most)
    answers = {problem.task_id: [kind.solution(problem, STUBS[language], "completion")] for problem in problems}
    grader = MultiPLEGrader(EvaluateConfig(), problems[0].language)
    with tempfile.TemporaryDirectory() as directory:
        started = time.monotonic()
        verdicts = grade_all([*problems], answers, grader, cores(), Path(directory) / "verdicts.jsonl")
        seconds = time.monotonic() - started
    alone = MultiPLEGrader(EvaluateConfig(sandbox="unsafe"), problems[0].language)
    before, some = os.times(), problems[:ALONE]
    for problem in some:
        alone.grade(problem, answers[problem.task_id])
    after = os.times()
    processor = sum(after[2:4]) - sum(before[2:4])
    odd = sum(verdict.base != "fail" or "not compile" in verdict.detail for verdict, in verdicts.values())
    return f"| {language} | {len(problems)} | {seconds:.0f} | {processor / len(some):.2f} | {odd} |"


if __name__ == "__main__":
    main()
