"""Prompts and stops of problems in EvalPlus form."""

from typing import TYPE_CHECKING

from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.benchmarks.prompts import FENCE, code_prompt
from xft_core.data.templates import PromptText

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

# A function's body ends where the next statement starts in the first column. These are the stops of the Codex paper
# and of evalplus's own completion runs together; a fence ends the code a model puts into Markdown.
NEXT_STATEMENT = (
    "\ndef ", "\nclass ", "\n@", "\n#", "\nif ", "\nprint(", "\nassert ", "\nimport ", "\nfrom ", f"\n{FENCE}")

STOPS: dict[str, tuple[str, ...]] = {"magicoder": (FENCE,), "chat": (FENCE,), "completion": NEXT_STATEMENT}


def build_prompt(problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> PromptText:
    """The prompt of one problem; see ``code_prompt``."""
    return code_prompt(problem.prompt.strip(), problem_code(problem), "python", style, tokenizer)


def problem_code(problem: Problem) -> str:
    """The problem's prompt as code that goes on in the next line: no blank lines around it, one newline at its end."""
    return problem.prompt.strip() + "\n"
