"""Prompt templates, the same for training and for evaluation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xft_core.data.response_end import ends_with_control_token
from xft_core.errors import DataError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

MAGICODER_SYSTEM = (
    "You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable responses to "
    "user instructions.")

Message = dict[str, str]


@dataclass(frozen=True)
class PromptText:
    """What the model is given. A chat template writes its special tokens itself; else the tokenizer adds its own."""

    text: str
    has_special_tokens: bool

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The prompt's tokens, with a begin token if the tokenizer uses one and never an end token."""
        ids = tokenizer(self.text, add_special_tokens=not self.has_special_tokens).input_ids
        return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not self.has_special_tokens else ids


def magicoder_prompt(instruction: str) -> str:
    """The paper's prompt: a system sentence, the instruction, and the place where the response begins."""
    return f"{MAGICODER_SYSTEM}\n\n@@ Instruction\n{instruction}\n\n@@ Response\n"


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> str:
    """The tokenizer's chat template up to where the assistant begins. Raises DataError when it has no template."""
    return _chat(tokenizer, messages, add_generation_prompt=True)


def training_texts(
    messages: list[Message], template: Literal["magicoder", "chat"], tokenizer: "PreTrainedTokenizerBase",
) -> tuple[PromptText, str, bool]:
    """Split a conversation into what is given and what is learned: its last message.

    Returns ``(prompt, response, needs_end_token)``; the last is False when the chat template ends the response with a
    token that generation can stop at, which is then part of ``response``. Raises DataError when the template cannot hold
    the conversation.
    """
    *given, last = messages
    if template == "magicoder":
        if len(given) != 1:
            raise DataError(
                f"a conversation of {len(messages)} messages does not fit the template magicoder (one instruction, one "
                "response); use data.template: chat")
        return PromptText(magicoder_prompt(given[0]["content"]), False), last["content"], True
    prompt = chat_prompt(tokenizer, given)
    whole = _chat(tokenizer, messages, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise DataError("the tokenizer's chat template writes a conversation otherwise with its answer than without")
    # What follows the end token (a line break, mostly) belongs to the next turn.
    response = whole.removeprefix(prompt).rstrip()
    after_content = response.rpartition(last["content"].strip())[2]  # all of it where the template changed the content
    return PromptText(prompt, True), response, not ends_with_control_token(after_content, tokenizer)


def _chat(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any) -> str:
    if tokenizer.chat_template is None:
        raise DataError("the tokenizer has no chat template; use the template (or prompt style) magicoder")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # templates are programs that raise what they like
        raise DataError(f"the tokenizer's chat template refuses the conversation: {error}") from None
