"""How a model is asked for code, and where its answer ends: what all kinds of benchmark share.

Every style ends its prompt with the problem's own code, so that the model goes on with the function's body, and the
program to grade is that code plus the completion up to the stop.
"""

from typing import TYPE_CHECKING

from xft_core.data.templates import PromptText, chat_prompt, magicoder_prompt
from xft_core.errors import DataError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

FENCE = "```"
INSTRUCTION = "Write a solution to the following problem:\n```{language}\n{statement}\n```"
STYLES = ("magicoder", "chat", "completion")


def code_prompt(
    statement: str, code: str, language: str, style: str, tokenizer: "PreTrainedTokenizerBase",
) -> PromptText:
    """The prompt in a style: magicoder, chat (the tokenizer's template) or completion (plain code).

    ``statement`` is shown in the instruction; ``code`` is what the answer begins with. ``language``: as in a Markdown
    fence. Raises DataError for a style that does not exist, or chat where the tokenizer has no template.
    """
    instruction = INSTRUCTION.format(language=language, statement=statement)
    if style == "completion":
        return PromptText(code, has_special_tokens=False)
    if style == "magicoder":
        return PromptText(f"{magicoder_prompt(instruction)}{FENCE}{language}\n{code}", has_special_tokens=False)
    if style == "chat":
        asked = chat_prompt(tokenizer, [{"role": "user", "content": instruction}])
        return PromptText(f"{asked}{FENCE}{language}\n{code}", has_special_tokens=True)
    raise DataError(f"There is no prompt style {style!r}. Choose one of: {', '.join(STYLES)}.")


def cut(completion: str, stops: tuple[str, ...]) -> str:
    """The completion up to the first place where any of ``stops`` begins."""
    places = [place for stop in stops if (place := completion.find(stop)) >= 0]
    return completion[:min(places)] if places else completion
