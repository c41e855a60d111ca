"""How a model is asked to solve a problem, and where its answer ends.

Every style ends its prompt with the problem's own code, so that the model goes on with the function's body, and the
program to grade is that code plus the completion up to the stop.
"""

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.benchmarks.problems import Problem
from xft_core.data.templates import PromptText, chat_prompt, magicoder_prompt
from xft_core.errors import DataError

FENCE = "```"
INSTRUCTION = "Write a solution to the following problem:\n```python\n{prompt}\n```"

# A function's body ends where the next statement starts in the first column. These are the stops of the Codex paper
# and of evalplus's own completion runs together; a fence ends the code a model puts into Markdown.
NEXT_STATEMENT = (
    "\ndef ", "\nclass ", "\n@", "\n#", "\nif ", "\nprint(", "\nassert ", "\nimport ", "\nfrom ", f"\n{FENCE}")

STOPS: dict[str, tuple[str, ...]] = {"magicoder": (FENCE,), "chat": (FENCE,), "completion": NEXT_STATEMENT}


def build_prompt(problem: Problem, style: str, tokenizer: PreTrainedTokenizerBase) -> PromptText:
    """The prompt of one problem in a style: magicoder, chat (the tokenizer's template) or completion (plain code).

    Raises DataError for a style that does not exist, or chat where the tokenizer has no template.
    """
    code = problem_code(problem)
    instruction = INSTRUCTION.format(prompt=problem.prompt.strip())
    if style == "completion":
        return PromptText(code, has_special_tokens=False)
    if style == "magicoder":
        return PromptText(f"{magicoder_prompt(instruction)}{FENCE}python\n{code}", has_special_tokens=False)
    if style == "chat":
        asked = chat_prompt(tokenizer, [{"role": "user", "content": instruction}])
        return PromptText(f"{asked}{FENCE}python\n{code}", has_special_tokens=True)
    raise DataError(f"There is no prompt style {style!r}. Choose one of: {', '.join(STOPS)}.")


def problem_code(problem: Problem) -> str:
    """The problem's prompt as code that goes on in the next line: no blank lines around it, one newline at its end."""
    return problem.prompt.strip() + "\n"


def cut(completion: str, stops: tuple[str, ...]) -> str:
    """The completion up to the first place where any of ``stops`` begins."""
    places = [place for stop in stops if (place := completion.find(stop)) >= 0]
    return completion[:min(places)] if places else completion
