"""Conversations of which every answer is learned (data.loss_on: all): where each answer is in the text, and in the tokens.

The text is what the chat template writes of the whole conversation. It is cut after each answer, behind the control token
that ends it, where tokenizers begin again; so each piece is a text with a prompt and a response, as with a single answer.
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
    """A conversation in pieces, each what is given and, after that, what is learned: one of the assistant's answers.

    Returns ``(pieces, needs_end_token)``, the last as templates.training_text does. Raises DataError when the template cannot
    hold the conversation, or writes an earlier answer otherwise once others follow.
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
                "the tokenizer's chat template writes an answer otherwise once other messages follow (as those do that remove "
                "its reasoning), so that no answer but the last can be learned: use data.loss_on: last")
        last, content = until[len(asked):end], message["content"].strip()
        last = last.rpartition(content)[2] if content else last
        pieces.append(PromptText(whole[start:end], True, len(asked) - start, _within(control, start, end)))
        start = end
    if not pieces:
        raise DataError("no message of the assistant follows a question: there is nothing to learn")
    return pieces, not text_tokens(tokenizer).ends_with_control_token(last)


def join(pieces: "list[tuple[array[int], int]]") -> "tuple[array[int], int]":
    """Tokens of pieces, each with its prompt's length, as those of one row: ``(input_ids, prompt_length)``. Tokens that are
    given behind the first answer are written as given() has them."""
    (ids, prompt_length), *others = pieces
    for more, asked in others:
        ids.extend(array("i", map(given, more[:asked])) + more[asked:])
    return ids, prompt_length


def given(token: int) -> int:
    """The number that stands for a token which is not learned, behind one that is: below 0. Its own inverse."""
    return -1 - token


def is_whole(pieces: list[PromptText], joined: "array[int]", tokens: TextTokens) -> bool:
    """Whether the pieces' tokens are those of the whole text."""
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
    """The spans, as far as they are in a piece, from its beginning."""
    if control is None:
        return None
    return tuple((max(begin, start) - start, min(stop, end) - start) for begin, stop in control if begin < end and stop > start)
