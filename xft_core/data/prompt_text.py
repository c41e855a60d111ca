"""A text for a model with its prompt marked, and the tokens of such a text."""

from array import array
from typing import NamedTuple

Span = tuple[int, int]


class PromptText(NamedTuple):
    """A text for a model. Its first ``asked`` characters are the prompt (None: the entire text).

    A chat template writes its special tokens itself (``has_special_tokens``); otherwise the tokenizer adds its own.
    ``control``: the spans in which the spelling of a control token means that token. None: everywhere in a text with
    ``has_special_tokens``, nowhere in any other text.
    """

    text: str
    has_special_tokens: bool
    asked: int | None = None
    control: tuple[Span, ...] | None = None
    head: int = 0  # number of initial characters that are the same in every text of a template

    def begin(self, answer: str) -> "PromptText":
        """Return the prompt followed by the start of an answer."""
        control = self.control
        if control is None and self.has_special_tokens:
            control = ((0, len(self.text)),)
        return PromptText(self.text + answer, self.has_special_tokens, len(self.text), control, self.head)


class Tokens(NamedTuple):
    """Tokens of a text (int32). The first ``prompt_length`` belong to its prompt.

    ``forced``: no token ends where the prompt ends, so prompt and answer were tokenised separately. ``parsed``: text of the
    data became a control token, which this tokenizer cannot prevent.
    """

    ids: "array[int]"
    prompt_length: int
    forced: bool = False
    parsed: bool = False
