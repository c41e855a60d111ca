import pytest

from tests.factories import tokenizer
from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.benchmarks.evalplus.prompts import STOPS, build_prompt, problem_code
from xft_core.benchmarks.prompts import cut
from xft_core.errors import DataError

PROBLEM = Problem(
    "Own/0", '\n\ndef double(x):\n    """ Twice x. """\n\n  ', "double", "    return 2 * x\n", [[1]], [])
CODE = 'def double(x):\n    """ Twice x. """\n'
INSTRUCTION = f"Write a solution to the following problem:\n```python\n{CODE.rstrip()}\n```"


def test_every_style_ends_with_the_problems_code() -> None:
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}")
    completion, magicoder, chat = (build_prompt(PROBLEM, style, words) for style in ("completion", "magicoder", "chat"))
    assert completion.text == problem_code(PROBLEM) == CODE
    assert magicoder.text.endswith(f"@@ Instruction\n{INSTRUCTION}\n\n@@ Response\n```python\n{CODE}")
    assert chat.text == f"<user>{INSTRUCTION}\n<assistant>```python\n{CODE}"
    assert [prompt.has_special_tokens for prompt in (completion, magicoder, chat)] == [False, False, True]


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
