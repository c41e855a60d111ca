"""Prompts and stops of DS-1000, and the program that is graded: the answer alone, which its tests put into their own code.

completion       the prompt as the benchmark has it. It ends where the answer begins
magicoder, chat  Magicoder's form, which the XFT paper measured with: the question with its code marks as fences, a sentence
                 that says what to do, and an answer that begins with a fence. One thing is added: where the answer is the
                 body of a function (51 of the 1,000 problems), the answer begins with the function's own first lines,
                 since tests put nothing but a body into it
"""

from typing import TYPE_CHECKING

from xft_core.benchmarks.ds1000.problems import Problem
from xft_core.benchmarks.prompts import FENCE, STYLES, cut
from xft_core.data.prompt_text import PromptText
from xft_core.data.templates import chat_prompt, magicoder_prompt
from xft_core.errors import DataError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

# The end of an answer as DS-1000 marks it, and as models close a block of code. Those of DS-1000's own harness.
STOPS = ("</code>", "# SOLUTION END", "END SOLUTION", FENCE)

FUNCTION_BODY = "### BEGIN SOLUTION"
REQUEST = 'Complete the Python code in "..."'


def build_prompt(problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> PromptText:
    """The prompt of one problem. Raises DataError for a style that does not exist, or chat where there is no template."""
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
    """The answer in what a model wrote: all of it up to the first stop."""
    return cut(completion, STOPS)


def _function_head(problem: Problem) -> str:
    """The lines of the function whose body is asked for, "" where the answer is not a body. Without a newline at the end:
    see ``problem_code`` of EvalPlus's prompts."""
    if not problem.prompt.rstrip().endswith(FUNCTION_BODY):
        return ""
    lines = problem.prompt.rstrip().splitlines()[:-1]
    first = max(index for index, line in enumerate(lines) if line.startswith("def "))
    return "\n".join(lines[first:])
