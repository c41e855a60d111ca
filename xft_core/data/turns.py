"""Conversations with every answer learned (data.loss_on: all): where each answer is in the text and in the tokens.

The text is the chat template's output for the entire conversation. It is split after each answer, after the control token that
ends it, where tokenizers start afresh. Each piece is thus a text with a prompt and a response, as with a single answer.
"""

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from xft_core.data.conversation import Message, is_asked
from xft_core.data.prompt_text import PromptText, Span
from xft_core.data.templates import chat_text, check_holds, template_options
from xft_core.data.text_tokens import TextTokens, text_tokens
from xft_core.errors import DataError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def turns(messages: list[Message], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[PromptText], bool]:
    """Split a conversation into pieces: each has a given part, then a learned part, which is one of the assistant's answers.

    Returns ``(pieces, needs_end_token)``, the latter as in templates.training_text. Raises DataError if the template cannot
    hold the conversation, or writes an earlier answer differently once others follow.
    """
    more = template_options(messages)
    whole, control = chat_text(tokenizer, messages, add_generation_prompt=False, **more)
    check_holds(whole, messages, tokenizer)
    pieces, start, last = [], 0, ""
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or not is_asked(messages[:place]):
            continue
        asked, _ = chat_text(tokenizer, messages[:place], add_generation_prompt=True, **more)
        until, _ = chat_text(tokenizer, messages[:place + 1], add_generation_prompt=False, **more)
        end = len(until.rstrip())
        if not (until.startswith(asked) and whole.startswith(until[:end]) and start <= len(asked) < end):
            raise DataError(
                "the tokenizer's chat template writes an answer differently once other messages follow (for example, without "
                "its reasoning), so only the last answer can be learned: use data.loss_on: last")
        last, content = until[len(asked):end], message["content"].strip()
        last = last.rpartition(content)[2] if content else last
        pieces.append(PromptText(whole[start:end], True, len(asked) - start, _within(control, start, end)))
        start = end
    if not pieces:
        raise DataError("no assistant message follows a question: there is nothing to learn")
    return pieces, not text_tokens(tokenizer).ends_with_control_token(last)


def join(pieces: "list[tuple[array[int], int]]") -> "tuple[array[int], int]":
    """Join the tokens of pieces, each with its prompt's length, into one row: ``(input_ids, prompt_length)``. Tokens that are
    given after the first answer are encoded by given()."""
    (ids, prompt_length), *others = pieces
    for more, asked in others:
        ids.extend(array("i", map(given, more[:asked])) + more[asked:])
    return ids, prompt_length


def given(token: int) -> int:
    """Return the negative number that encodes a token which is not learned but follows a learned one. Its own inverse."""
    return -1 - token


def is_whole(pieces: list[PromptText], joined: "array[int]", tokens: TextTokens) -> bool:
    """Return whether the pieces' tokens equal those of the entire text."""
    text = "".join(piece.text for piece in pieces)
    control = None if pieces[0].control is None else tuple(_moved(pieces))
    whole = tokens.encode([PromptText(text, True, None, control)])[0].ids
    return [max(token, given(token)) for token in joined] == whole.tolist()


def _moved(pieces: list[PromptText]) -> Iterator[Span]:
    start = 0
    for piece in pieces:
        yield from ((begin + start, end + start) for begin, end in piece.control or ())
        start += len(piece.text)


def _within(control: tuple[Span, ...] | None, start: int, end: int) -> tuple[Span, ...] | None:
    """Return the spans clipped to a piece, relative to its beginning."""
    if control is None:
        return None
    return tuple((max(begin, start) - start, min(stop, end) - start) for begin, stop in control if begin < end and stop > start)
