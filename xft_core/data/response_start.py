"""Where in a text's tokens its response begins, and tokens of a long text's beginning."""

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHARACTERS_PER_TOKEN, SPARE_CHARACTERS = 16, 4096  # of a text that is tokenised whole, for each token that is kept
STRIPPED = 64  # characters at most that a tokenizer drops where a response begins
# Texts that a response may be tokenised behind, to have it without the space that begins a text.
ANCHORS = ("\n", ":", "a", ")", " ")


def response_start(encoding: "Encoding", asked: int | None, text: str) -> int | None:
    """Where the response begins in a text's tokens; None also for a text that is a prompt only."""
    return None if asked is None or asked >= len(text) else boundary(encoding, asked, len(text))


def utf8_length(text: str) -> int:
    """Length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def boundary(encoding: "Encoding", asked: int, length: int) -> int | None:
    """The first token of the text from character ``asked`` on; None where a token holds characters of both sides."""
    for place in range(asked, min(length, asked + STRIPPED)):
        token = encoding.char_to_token(place)
        if token is None:
            continue  # a space that the tokenizer drops
        span, before = encoding.token_to_chars(token), encoding.token_to_chars(token - 1) if token else None
        return token if span and span[0] >= asked and (before is None or before[1] <= asked) else None
    return None


def response_ids(whole: "Tokenizer", response: str, limit: int | None) -> "array[int]":
    """Tokens of a response that follows a prompt, at most about ``limit`` of them."""
    for anchor in ANCHORS:
        encoding = encode_head(whole, anchor + response, limit)
        place = boundary(encoding, len(anchor), len(anchor) + len(response))
        if place is not None:
            return array("i", encoding.ids[place:])
    return array("i", encode_head(whole, response, limit).ids)


def longest_text(limit: int) -> int:
    """Characters of a text that are certain to be tokenised whole where ``limit`` tokens are kept."""
    return CHARACTERS_PER_TOKEN * limit + SPARE_CHARACTERS


def encode_head(whole: "Tokenizer", text: str, limit: int | None) -> "Encoding":
    """A text's tokens; where ``limit`` is far less than there are, those of its first part, as long as need be: until twice
    as much text begins with the same tokens."""
    if limit is not None:
        size, known = longest_text(limit), None
        while size < len(text):
            encoding = whole.encode(text[:size], add_special_tokens=False)
            first = encoding.ids[:limit + 1]
            if len(first) > limit and first == known:
                return encoding
            size, known = 2 * size, first
    return whole.encode(text, add_special_tokens=False)
