"""Prompts and stops of problems in EvalPlus form.

HumanEval's problems are the head of a function: every style ends with it, and the model continues with the body. MBPP's
problems are only a docstring. For these, magicoder and chat ask in words for a complete program, as Magicoder and the XFT
paper did; completion continues below the docstring.
"""

from typing import TYPE_CHECKING

from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.benchmarks.prompts import FENCE, INSTRUCTION, code_prompt
from xft_core.data.prompt_text import PromptText

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

# A function's body ends where the next statement starts in the first column. These stops combine those of the Codex paper
# and of evalplus's own completion runs; a fence ends code that a model writes in Markdown.
NEXT_STATEMENT = (
    "\ndef ", "\nclass ", "\n@", "\n#", "\nif ", "\nprint(", "\nassert ", "\nimport ", "\nfrom ", f"\n{FENCE}")

STOPS: dict[str, tuple[str, ...]] = {"magicoder": (FENCE,), "chat": (FENCE,), "completion": NEXT_STATEMENT}

QUOTES = '"""'
INSTRUCTION_IN_WORDS = "{words} Your code should satisfy the following assertion:\n```python\n{assertion}\n```"


def build_prompt(problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> PromptText:
    """The prompt of one problem; see ``code_prompt``."""
    code = problem_code(problem)
    in_words = _in_words(problem)
    if in_words is None or style == "completion":
        instruction = INSTRUCTION.format(language="python", statement=problem.prompt.strip())
        return code_prompt(instruction, code, "python", style, tokenizer)
    return code_prompt(in_words, "", "python", style, tokenizer)


def problem_code(problem: Problem) -> str:
    """The problem's prompt as code to continue, without blank lines around it. It ends with a newline only if the next line is
    not indented.

    Most tokenizers encode a newline and the indentation after it as one token. So models have hardly ever seen an indented
    line after a separate newline token: they then close the fence or begin the next function.
    """
    return begun(problem.prompt)


def begun(code: str) -> str:
    """Code to continue; see ``problem_code``."""
    code = code.strip()
    return code if code.splitlines()[-1][:1].isspace() else f"{code}\n"


def _in_words(problem: Problem) -> str | None:
    """The instruction of a problem that is only a docstring; None if the prompt is code."""
    text = problem.prompt.strip()
    if not (text.startswith(QUOTES) and text.endswith(QUOTES) and text.count(QUOTES) == 2):
        return None
    words, found, assertion = text.strip('"').partition("\nassert ")
    words = words.strip() if words.strip().endswith(".") else f"{words.strip()}."
    return INSTRUCTION_IN_WORDS.format(words=words, assertion=f"assert {assertion.strip()}") if found else words
