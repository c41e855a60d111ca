"""Prompt templates, the same for training and for evaluation."""

import json
from typing import TYPE_CHECKING, Any, Literal

from xft_core.data.conversation import PLAIN_TEXT, Message, beside
from xft_core.data.prompt_text import PromptText, Span
from xft_core.data.text_tokens import text_tokens
from xft_core.errors import DataError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

MAGICODER_SYSTEM = (
    "You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable responses to "
    "user instructions.")
MAGICODER_HEAD = f"{MAGICODER_SYSTEM}\n\n@@ Instruction\n"


def magicoder_prompt(instruction: str) -> str:
    """Return the paper's prompt: a system sentence, the instruction, and the beginning of the response."""
    return f"{MAGICODER_HEAD}{instruction}\n\n@@ Response\n"


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> PromptText:
    """Apply the tokenizer's chat template up to where the assistant begins. Raises DataError if there is no template."""
    text, control = chat_text(tokenizer, messages, add_generation_prompt=True)
    return PromptText(text, True, control=control)


def training_text(
    messages: list[Message], template: Literal["magicoder", "chat"], tokenizer: "PreTrainedTokenizerBase",
) -> tuple[PromptText, bool]:
    """Return a conversation as a text: the given part, then the learned part, which is the last message.

    Returns ``(text, needs_end_token)``. The latter is False if the chat template ends the response with a token that generation
    can stop at; this token is then part of the response. Raises DataError if the template cannot hold the conversation.
    """
    *given, last = messages
    if last["role"] == PLAIN_TEXT:
        return PromptText(last["content"], False, 0), True
    if template == "magicoder":
        if len(given) != 1 or beside(messages).get("tools"):
            tools = " with tools" if beside(messages).get("tools") else ""
            raise DataError(
                f"a conversation of {len(messages)} messages{tools} does not fit the template magicoder (one instruction, one "
                "response); use data.template: chat")
        prompt = magicoder_prompt(given[0]["content"])
        return PromptText(prompt + last["content"], False, len(prompt), None, len(MAGICODER_HEAD)), True
    more = template_options(messages)
    asked, _ = chat_text(tokenizer, given, add_generation_prompt=True, **more)
    whole, control = chat_text(tokenizer, messages, add_generation_prompt=False, **more)
    check_holds(whole, messages, tokenizer)
    if not whole.startswith(asked):
        raise DataError("the tokenizer's chat template writes the prompt differently once the answer follows")
    # Text after the end token (usually a line break) belongs to the next turn.
    response = whole.removeprefix(asked).rstrip()
    text = PromptText(asked + response, True, len(asked), control)
    content = last["content"].strip()
    after_content = response.rpartition(content)[2] if content else response  # all, if the template changed it
    return text, not text_tokens(tokenizer).ends_with_control_token(after_content)


def turn_marker(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the text that the chat template writes where the assistant begins; None if it is a control token or empty."""
    message = [{"role": "user", "content": "a"}]
    without, _ = chat_text(tokenizer, message, add_generation_prompt=False)
    marker = chat_text(tokenizer, message, add_generation_prompt=True)[0].removeprefix(without).strip()
    return None if not marker or text_tokens(tokenizer).spells_control(marker) else marker


def template_options(messages: list[Message]) -> dict[str, Any]:
    """Return the chat template's arguments besides the messages: the tools, if there are any."""
    tools = beside(messages).get("tools")
    return {"tools": tools} if tools else {}


def check_holds(text: str, messages: list[Message], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError if a chat template's text lacks a part of the conversation: a system message, a tool, a tool call or its
    answer. A model would be tuned on answers that nothing asks for."""
    tools = beside(messages).get("tools") or []
    calling = any(["tool_calls" in message for message in messages])
    if tools or calling:
        written = json.dumps([tools, [message.get("tool_calls") for message in messages]], ensure_ascii=False)
        if text_tokens(tokenizer).spells_control(written):
            raise DataError("a tool or tool call contains a control token of the tokenizer, which cannot be kept as text there")
    if tools and text == _attempted(tokenizer, messages):
        raise DataError("the tokenizer's chat template has no place for tools: it leaves them out")
    without_calls = [{name: value for name, value in message.items() if name != "tool_calls"} for message in messages]
    if calling and text == _attempted(tokenizer, without_calls, **template_options(messages)):
        raise DataError("the tokenizer's chat template has no place for tool calls: it leaves them out")
    for message in messages:
        if message["role"] in ("system", "tool") and message["content"].strip() not in text:
            raise DataError(
                f"the tokenizer's chat template has no place for messages of the role {message['role']}: it leaves out "
                f"{message['content'].strip()[:60]!r}")


def _attempted(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any) -> str | None:
    """Return the conversation as the chat template writes it; None if the template rejects it."""
    try:
        return _render(tokenizer, list(messages), add_generation_prompt=False, **options)
    except DataError:
        return None


def chat_text(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any,
) -> tuple[str, tuple[Span, ...] | None]:
    """Return the conversation as the chat template writes it, and the spans that come from the template itself. None: treat
    the entire text as the template's, because no message spells a control token."""
    text = _render(tokenizer, messages, **options)
    contents = [message["content"] for message in messages]
    if not any(map(text_tokens(tokenizer).spells_control, contents)):
        return text, None
    names = [f"\ue000{index}\ue001" for index in range(len(messages))]  # placeholders that no content contains
    frame = _render(
        tokenizer, [message | {"content": name} if message["content"] else message
                    for message, name in zip(messages, names, strict=True)], **options)
    for used in (contents, [content.strip() for content in contents]):  # many templates strip contents
        control, written, end = [], "", 0
        for name, content in zip(names, used, strict=True):
            place = frame.find(name, end)
            if place < 0:
                continue  # a message that the template leaves out
            control.append((len(written), len(written) + place - end))
            written += frame[end:place] + content
            end = place + len(name)
        control.append((len(written), len(written) + len(frame) - end))
        if written + frame[end:] == text:
            return text, tuple(control)
    raise DataError(
        "a message contains a control token of the tokenizer, which cannot be kept as text because the chat template changes "
        "messages. Remove the token's text from the row")


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any) -> str:
    if tokenizer.chat_template is None:
        raise DataError("the tokenizer has no chat template; use the template (or prompt style) magicoder")
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # templates are programs and can raise anything
        raise DataError(f"the tokenizer's chat template rejects the conversation: {error}") from None
    return text
