"""A text for a model with its prompt marked, and the tokens that are made of it."""

from array import array
from typing import NamedTuple

Span = tuple[int, int]


class PromptText(NamedTuple):
    """A text for a model, of which the first ``asked`` characters are the prompt (None: all of it).

    A chat template writes its special tokens itself (``has_special_tokens``); else the tokenizer adds its own.
    ``control``: the spans in which the spelling of a control token is one; None: everywhere, in a text with
    ``has_special_tokens``, and nowhere in another.
    """

    text: str
    has_special_tokens: bool
    asked: int | None = None
    control: tuple[Span, ...] | None = None
    head: int = 0  # characters at its beginning that are the same in every text of a template

    def begin(self, answer: str) -> "PromptText":
        """The prompt with the first text of an answer after it."""
        control = self.control
        if control is None and self.has_special_tokens:
            control = ((0, len(self.text)),)
        return PromptText(self.text + answer, self.has_special_tokens, len(self.text), control, self.head)


class Tokens(NamedTuple):
    """Tokens of a text (int32), the first ``prompt_length`` of them of its prompt.

    ``forced``: no token ends where the prompt does, so prompt and answer were tokenised apart. ``parsed``: text of the data
    became a control token, which this tokenizer cannot prevent.
    """

    ids: "array[int]"
    prompt_length: int
    forced: bool = False
    parsed: bool = False
