"""How a model is asked for code, and where its answer ends, for all kinds of benchmark.

The program to grade is the problem's own code plus the completion up to the stop.
"""

from typing import TYPE_CHECKING

from xft_core.data.prompt_text import PromptText
from xft_core.data.templates import chat_prompt, magicoder_prompt
from xft_core.errors import DataError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

FENCE = "```"
INSTRUCTION = "Write a solution to the following problem:\n```{language}\n{statement}\n```"
STYLES = ("magicoder", "chat", "completion")


def code_prompt(
    instruction: str, code: str, language: str, style: str, tokenizer: "PreTrainedTokenizerBase",
) -> PromptText:
    """The prompt in a style: magicoder, chat (the tokenizer's template) or completion (plain code).

    ``code``: the beginning of the answer; it should end where the model's first token begins, so mostly without a newline.
    If it is empty, the answer begins with the fence alone. ``language``: as in a Markdown fence. Raises DataError for an
    unknown style, or for chat if the tokenizer has no template.
    """
    begun = f"{FENCE}{language}\n{code}" if code else f"{FENCE}{language}"
    if style == "completion":
        return PromptText(code, has_special_tokens=False)
    if style == "magicoder":
        return PromptText(magicoder_prompt(instruction), has_special_tokens=False).begin(begun)
    if style == "chat":
        return chat_prompt(tokenizer, [{"role": "user", "content": instruction}]).begin(begun)
    raise _no_style(style)


def instruction_prompt(
    instruction: str, plain: str, style: str, tokenizer: "PreTrainedTokenizerBase",
) -> PromptText:
    """The prompt in a style, for an answer that is not code and has no given beginning. ``plain``: the text that the style
    completion continues. Raises DataError as ``code_prompt`` does."""
    if style == "completion":
        return PromptText(plain, has_special_tokens=False)
    if style == "magicoder":
        return PromptText(magicoder_prompt(instruction), has_special_tokens=False)
    if style == "chat":
        return chat_prompt(tokenizer, [{"role": "user", "content": instruction}])
    raise _no_style(style)


def cut(completion: str, stops: tuple[str, ...]) -> str:
    """The completion up to the first place where any of ``stops`` begins."""
    places = [place for stop in stops if (place := completion.find(stop)) >= 0]
    return completion[:min(places)] if places else completion


def _no_style(style: str) -> DataError:
    return DataError(f"There is no prompt style {style!r}. Choose one of: {', '.join(STYLES)}.")
