"""Find where the response begins in a text's tokens, and tokenise the beginning of a long text."""

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHARACTERS_PER_TOKEN, SPARE_CHARACTERS = 16, 4096  # texts up to this length per kept token are tokenised completely
STRIPPED = 64  # most characters that a tokenizer drops at the beginning of a response
# Texts to tokenise a response after, so that it does not get the space that begins a text.
ANCHORS = ("\n", ":", "a", ")", " ")


def response_start(encoding: "Encoding", asked: int | None, text: str) -> int | None:
    """Return where the response begins in a text's tokens; None also for a text that is only a prompt."""
    return None if asked is None or asked >= len(text) else boundary(encoding, asked, len(text))


def utf8_length(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def boundary(encoding: "Encoding", asked: int, length: int) -> int | None:
    """Return the first token of the text from character ``asked`` on; None if a token has characters on both sides."""
    for place in range(asked, min(length, asked + STRIPPED)):
        token = encoding.char_to_token(place)
        if token is None:
            continue  # a space that the tokenizer drops
        span, before = encoding.token_to_chars(token), encoding.token_to_chars(token - 1) if token else None
        return token if span and span[0] >= asked and (before is None or before[1] <= asked) else None
    return None


def response_ids(whole: "Tokenizer", response: str, limit: int | None) -> "array[int]":
    """Return the tokens of a response that follows a prompt, at most about ``limit`` of them."""
    for anchor in ANCHORS:
        encoding = encode_head(whole, anchor + response, limit)
        place = boundary(encoding, len(anchor), len(anchor) + len(response))
        if place is not None:
            return array("i", encoding.ids[place:])
    return array("i", encode_head(whole, response, limit).ids)


def longest_text(limit: int) -> int:
    """Return the length in characters up to which a text is tokenised completely if ``limit`` tokens are kept."""
    return CHARACTERS_PER_TOKEN * limit + SPARE_CHARACTERS


def encode_head(whole: "Tokenizer", text: str, limit: int | None) -> "Encoding":
    """Return a text's tokens. If ``limit`` is far below their number, tokenise only a first part, doubling it until twice as
    much text begins with the same tokens."""
    if limit is not None:
        size, known = longest_text(limit), None
        while size < len(text):
            encoding = whole.encode(text[:size], add_special_tokens=False)
            first = encoding.ids[:limit + 1]
            if len(first) > limit and first == known:
                return encoding
            size, known = 2 * size, first
    return whole.encode(text, add_special_tokens=False)
