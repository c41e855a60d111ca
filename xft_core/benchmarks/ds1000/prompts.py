"""Prompts and stops of DS-1000, and the program that is graded: the answer alone, which the tests insert into their own code.

completion       the benchmark's own prompt, which ends where the answer begins
magicoder, chat  Magicoder's form, which the XFT paper used: the question with its code marks as fences, a sentence
                 that says what to do, and an answer that begins with a fence. One addition: if the answer is the body of a
                 function (51 of the 1,000 problems), it begins with the function's own first lines, since the tests
                 insert nothing but a body
"""

from typing import TYPE_CHECKING

from xft_core.benchmarks.ds1000.problems import Problem
from xft_core.benchmarks.prompts import FENCE, STYLES, cut
from xft_core.data.prompt_text import PromptText
from xft_core.data.templates import chat_prompt, magicoder_prompt
from xft_core.errors import DataError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

# How DS-1000 marks the end of an answer, and how models close a block of code. The same as in DS-1000's own harness.
STOPS = ("</code>", "# SOLUTION END", "END SOLUTION", FENCE)

FUNCTION_BODY = "### BEGIN SOLUTION"
REQUEST = 'Complete the Python code in "..."'


def build_prompt(problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> PromptText:
    """The prompt of one problem. Raises DataError for an unknown style, or for chat if there is no template."""
    if style == "completion":
        return PromptText(problem.prompt, has_special_tokens=False)
    question = problem.prompt.replace("<code>", f"{FENCE}python").replace("</code>", FENCE)
    instruction = f"{question}\n\n{REQUEST}"
    start = f"{FENCE}python\n{_function_head(problem)}"
    if style == "magicoder":
        return PromptText(magicoder_prompt(instruction), has_special_tokens=False).begin(start)
    if style == "chat":
        return chat_prompt(tokenizer, [{"role": "user", "content": instruction}]).begin(start)
    raise DataError(f"There is no prompt style {style!r}. Choose one of: {', '.join(STYLES)}.")


def answer(completion: str) -> str:
    """The answer: all that a model wrote, up to the first stop."""
    return cut(completion, STOPS)


def _function_head(problem: Problem) -> str:
    """The first lines of the function whose body is the answer; "" if the answer is not a body. No newline at the end: see
    ``problem_code`` in evalplus/prompts.py."""
    if not problem.prompt.rstrip().endswith(FUNCTION_BODY):
        return ""
    lines = problem.prompt.rstrip().splitlines()[:-1]
    first = max(index for index, line in enumerate(lines) if line.startswith("def "))
    return "\n".join(lines[first:])
