from typing import Any

import pytest

from tests.xft_core.benchmarks.ds1000.problems import BODY_PROMPT, PROMPT, row
from xft_core.benchmarks.ds1000.benchmark import DS1000
from xft_core.benchmarks.ds1000.problems import Problem, parse_problem
from xft_core.data.templates import MAGICODER_SYSTEM
from xft_core.errors import DataError
from xft_core.files.locate import find_model
from xft_core.models.loading import load_tokenizer

KIND = DS1000()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(find_model("demo:model"))


def problem(prompt: str) -> Problem:
    return parse_problem(row(7, prompt=prompt), "here")


def test_completion_is_the_benchmarks_own_prompt(tokenizer: Any) -> None:
    assert KIND.build_prompt(problem(PROMPT), "completion", tokenizer).text == PROMPT


def test_magicoder_asks_as_the_paper_did(tokenizer: Any) -> None:
    asked = KIND.build_prompt(problem(PROMPT), "magicoder", tokenizer).text
    question = PROMPT.replace("<code>", "```python").replace("</code>", "```")
    assert asked == (f'{MAGICODER_SYSTEM}\n\n@@ Instruction\n{question}\n\nComplete the Python code in "..."\n\n'
                     "@@ Response\n```python\n")


def test_a_functions_body_begins_below_its_head(tokenizer: Any) -> None:
    asked = KIND.build_prompt(problem(BODY_PROMPT), "magicoder", tokenizer).text
    assert asked.endswith("@@ Response\n```python\ndef f(a=example_a):\n    # return the solution in this function\n"
                          "    # result = f(a)")


def test_no_such_style(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no prompt style"):
        KIND.build_prompt(problem(PROMPT), "plain", tokenizer)


@pytest.mark.parametrize("completion", [
    "result = a\n</code>\nEND SOLUTION", "result = a\n# SOLUTION END\nplt.show()", "result = a\nEND SOLUTION\n<code>",
    "result = a\n```\nThis sorts."])
def test_the_answer_ends_at_the_first_stop(completion: str) -> None:
    assert KIND.solution(problem(PROMPT), completion, "completion") == "result = a\n"
    assert any(stop in completion for stop in KIND.stops([], "completion"))


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompt": " "}, "prompt"), ({"code_context": "x = 1"}, "test_execution"), ({"metadata": []}, "metadata"),
    ({"metadata": {"problem_id": "1"}}, "problem_id"), ({"metadata": {"problem_id": 1, "library": ""}}, "library"),
    ({"metadata": {"problem_id": 1, "library": "Numpy"}}, "perturbation_type")])
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^here: .*{message}"):
        parse_problem(row(1) | changes, "here")
