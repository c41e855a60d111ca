"""Complete batches of prompts: the part that all back ends share, whatever computes the tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.recipe.sections import GenerateConfig

FinishReason = Literal["stop", "length", "prompt_too_long"]

# Decoded together with a completion and then removed: some tokenizers drop a space at the start of a text.
LEAD_TOKENS = 8


@dataclass(frozen=True)
class Completion:
    """A model's output after a prompt. The text includes the stop and anything in the same token, but no end token.
    ``new_tokens`` counts all tokens, including an end token."""

    text: str
    finish_reason: FinishReason
    new_tokens: int


class Completer(ABC):
    """A model ready to complete prompts under one configuration.

    context_length   maximum tokens of prompt and completion together, None for no limit
    end_tokens       any of these ends a completion
    """

    context_length: int | None
    end_tokens: list[int]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: GenerateConfig, stops: tuple[str, ...]) -> None:
        self.tokenizer, self.config, self.stops = tokenizer, config, stops

    @abstractmethod
    def write(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], seed: int) -> list[list[int]]:
        """Return the tokens that follow each prompt: at most ``rooms`` of them, and none after an end token or after the
        token that completes a stop."""

    def complete(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Completion]:
        """Complete prompts, given as token ids, all at once. Sampling depends on ``seed`` alone."""
        rooms = [self.room(prompt) for prompt in prompts]
        open_rows = [row for row, room in enumerate(rooms) if room]
        completions = [Completion("", "prompt_too_long", 0)] * len(prompts)
        if open_rows:
            written = self.write([prompts[row] for row in open_rows], [rooms[row] for row in open_rows], seed)
            for row, tokens in zip(open_rows, written, strict=True):
                ended = tokens[-1] in self.end_tokens
                text = self._text(prompts[row], tokens[:-1] if ended else tokens)  # the end token need not be a special token
                stopped = ended or any(stop in text for stop in self.stops)
                completions[row] = Completion(text, "stop" if stopped else "length", len(tokens))
        return completions

    def room(self, prompt: Sequence[int]) -> int:
        """Return how many tokens may follow a prompt: 0 if the prompt alone fills the model's context."""
        if self.context_length is None:
            return self.config.max_new_tokens
        return max(0, min(self.config.max_new_tokens, self.context_length - len(prompt)))

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids unchanged, without cleaning up spaces."""
        return str(self.tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))

    def _text(self, prompt: Sequence[int], tokens: list[int]) -> str:
        lead = list(prompt[-LEAD_TOKENS:])
        before, whole = (self.decode(ids, skip_special_tokens=True) for ids in (lead, lead + tokens))
        return whole[len(before):]


def end_tokens(tokenizer: PreTrainedTokenizerBase, *configs: Any) -> list[int]:
    """Return every token that ends an answer: the tokenizer's, and those in any of the checkpoint's configurations (chat models
    have a second end token)."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, *(getattr(config, "eos_token_id", None) for config in configs)):
        found |= set(value) if isinstance(value, list) else {value} if value is not None else set()
    return sorted(found)
