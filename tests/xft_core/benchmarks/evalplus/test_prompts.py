import pytest

from tests.factories import tokenizer
from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.benchmarks.evalplus.prompts import STOPS, build_prompt, problem_code
from xft_core.benchmarks.prompts import cut
from xft_core.errors import DataError

PROBLEM = Problem(
    "Own/0", '\n\ndef double(x):\n    """ Twice x. """\n\n  ', "double", "    return 2 * x\n", [[1]], [])
CODE = 'def double(x):\n    """ Twice x. """'
INSTRUCTION = f"Write a solution to the following problem:\n```python\n{CODE}\n```"
IN_WORDS = Problem(
    "Own/1", '"""\nWrite a function to double a number\nassert double(2) == 4\n"""\n', "double", "", [[1]], [])
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")


def test_every_style_ends_with_the_functions_head_and_no_newline() -> None:
    words = tokenizer()
    words.chat_template = TEMPLATE
    completion, magicoder, chat = (build_prompt(PROBLEM, style, words) for style in ("completion", "magicoder", "chat"))
    assert completion.text == problem_code(PROBLEM) == CODE
    assert magicoder.text.endswith(f"@@ Instruction\n{INSTRUCTION}\n\n@@ Response\n```python\n{CODE}")
    assert chat.text == f"<user>{INSTRUCTION}\n<assistant>```python\n{CODE}"
    assert [prompt.has_special_tokens for prompt in (completion, magicoder, chat)] == [False, False, True]


def test_a_problem_told_in_a_docstring_is_asked_in_words() -> None:
    words = tokenizer()
    words.chat_template = TEMPLATE
    completion, magicoder, chat = (build_prompt(IN_WORDS, style, words) for style in ("completion", "magicoder", "chat"))
    asked = (
        "Write a function to double a number. Your code should satisfy the following assertion:\n"
        "```python\nassert double(2) == 4\n```")
    assert completion.text == problem_code(IN_WORDS) == IN_WORDS.prompt
    assert magicoder.text.endswith(f"@@ Instruction\n{asked}\n\n@@ Response\n```python")
    assert chat.text == f"<user>{asked}\n<assistant>```python"


def test_words_without_an_assertion() -> None:
    problem = Problem("Own/2", '"""Double a number."""', "double", "", [[1]], [])
    asked = build_prompt(problem, "magicoder", tokenizer()).text
    assert asked.endswith("@@ Instruction\nDouble a number.\n\n@@ Response\n```python")


def test_styles_that_cannot_be() -> None:
    words = tokenizer()
    words.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        build_prompt(PROBLEM, "chat", words)
    with pytest.raises(DataError, match="magicoder, chat, completion"):
        build_prompt(PROBLEM, "haiku", tokenizer())


@pytest.mark.parametrize(("style", "completion", "kept"), [
    ("magicoder", "    return 2 * x\n```\nIt doubles x.", "    return 2 * x\n"),
    ("magicoder", "    return 2 * x\n\ndef helper():\n    pass\n", "    return 2 * x\n\ndef helper():\n    pass\n"),
    ("chat", "    # two\n    return 2 * x```", "    # two\n    return 2 * x"),
    ("completion", "    return 2 * x\n\ndef other():\n    pass", "    return 2 * x\n"),
    ("completion", "    return 2 * x\n# test\nprint(double(2))", "    return 2 * x"),
    ("completion", "    if x:\n        return 2 * x\n    # zero\n    return 0\nif __name__ == '__main__':",
     "    if x:\n        return 2 * x\n    # zero\n    return 0"),
    ("completion", "    def inner():\n        return x\n    return inner() * 2", "    def inner():\n        return x\n"
     "    return inner() * 2"),
])
def test_cut(style: str, completion: str, kept: str) -> None:
    assert cut(completion, STOPS[style]) == kept
