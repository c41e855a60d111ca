"""LiveCodeBench's form (Jain et al. 2024): question_content, starter_code, public_test_cases and private_test_cases. The tests
are for standard input and output, or for a function.

Test cases are a list of {"input", "output", "testtype"}, or that list as JSON text. The authors' file packs private test cases
with pickle, which can run code when it is read, so these are refused.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind
from xft_core.benchmarks.evalplus import prompts
from xft_core.benchmarks.programs.rows import program_problem, shown
from xft_core.benchmarks.prompts import FENCE, code_prompt, cut
from xft_core.benchmarks.tasks.benchmark import Problem
from xft_core.errors import DataError
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText

CASES = ("public_test_cases", "private_test_cases")
READS = "Write a Python program that reads standard input and writes standard output."
BEGINS = "Begin with this code:\n```python\n{starter}\n```"
SECONDS = 10.0
CANARY = Problem("canary", {"function": "", "inputs": ["2\n"], "outputs": ["3\n"]})
RIGHT = "print(int(input()) + 1)\n"


class LiveCodeBench(Kind[Problem]):
    """See the module; graders/contests.py grades."""

    name = "LiveCodeBench"
    fields = frozenset({"question_content", "starter_code", *CASES})
    extended_tests = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor"})

    def rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """See Kind. A row without a question_id is named after its line."""
        for number, row in read_jsonl(path):
            yield number, {"question_id": f"{path.name.partition('.')[0]}/{number}", **row}

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """See Kind. The row that graders see has inputs, outputs and the function's name."""
        problem = program_problem(row, ("question_content",), where, "question_id")
        starter = row.get("starter_code") or ""
        if not isinstance(starter, str):
            raise DataError(f"{where}: starter_code is {shown(starter)}. Give a text, or an empty one.")
        cases = [case for name in CASES for case in _cases(row.get(name), f"{where}: {name}")]
        kinds = {case["testtype"] for case in cases}
        if not cases or len(kinds) > 1:
            raise DataError(
                f"{where}: the test cases are of {len(kinds)} kinds ({', '.join(sorted(kinds)) or 'there are none'}). Give "
                "test cases that are all stdin or all functional.")
        function = _function(row, where) if kinds == {"functional"} else ""
        if function:
            for case in cases:
                _check_json(case, where)
        return Problem(problem.task_id, {
            "question_content": row["question_content"], "starter_code": starter, "function": function,
            "inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]})

    def build_prompt(self, problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind."""
        starter = problem.row["starter_code"].strip()
        asked = f"{problem.row['question_content'].strip()}\n\n{BEGINS.format(starter=starter) if starter else READS}"
        prompt = code_prompt(asked, _begun(problem), "python", style, tokenizer)
        return prompt._replace(text=_docstring(problem) + prompt.text) if style == "completion" else prompt

    def stops(self, problems: Sequence[Problem], style: str) -> tuple[str, ...]:
        """See Kind. A program may have any number of definitions; a base model's ends at the next docstring."""
        return ('\n"""', f"\n{FENCE}") if style == "completion" else prompts.STOPS[style]

    def solution(self, problem: Problem, completion: str, style: str) -> str:
        """See Kind."""
        return _begun(problem) + cut(completion, self.stops([problem], style))

    def texts(self, problem: Problem) -> tuple[str, str]:
        """See Kind."""
        return problem.row["question_content"], ""

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Problem]:
        """See Kind."""
        from xft_core.benchmarks.programs.grading import ProgramGrader

        return ProgramGrader(config, "contests", ("outputs",), SECONDS, benchmark, CANARY, RIGHT)


def _begun(problem: Problem) -> str:
    starter: str = problem.row["starter_code"]
    return prompts.begun(starter) if starter.strip() else ""


def _docstring(problem: Problem) -> str:
    return f'"""\n{problem.row["question_content"].strip()}\n"""\n'


def _cases(given: Any, where: str) -> list[dict[str, str]]:
    """Test cases, from a list or its JSON. Raises DataError."""
    if isinstance(given, str) and given.strip():
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise DataError(
                f"{where} is not JSON. LiveCodeBench's own file packs it with pickle, which can run code when it is read, so "
                "it is not read here: unpack it with the authors' loader and write the list as JSON, or leave it empty."
            ) from None
    given = given or []
    if not isinstance(given, list) or not all(
            isinstance(case, dict) and all(isinstance(case.get(name), str) for name in ("input", "output"))
            and case.get("testtype") in ("stdin", "functional") for case in given):
        raise DataError(
            f'{where} is {shown(given)}. Give a list of {{"input": text, "output": text, "testtype": "stdin" or '
            '"functional"}.')
    return given


def _function(row: dict[str, Any], where: str) -> str:
    """The name of the function that is called: ``func_name`` of metadata."""
    metadata = row.get("metadata")
    try:
        content = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError:
        content = None
    name = content.get("func_name") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(
            f'{where}: metadata is {shown(metadata)}. Functional test cases need {{"func_name": the function\'s name}} there.')
    return name


def _check_json(case: dict[str, str], where: str) -> None:
    try:
        for line in (*filter(str.strip, case["input"].split("\n")), case["output"]):
            json.loads(line)
    except ValueError:
        raise DataError(
            f"{where}: the functional test case {shown(case)} is not JSON. Its input needs one argument per line, its output "
            "one value.") from None
