"""Batches of prompts to completions, with transformers: left padding, and an end of its own for every row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.config import GenerateConfig

FinishReason = Literal["stop", "length", "prompt_too_long"]

# Decoded together with a completion and taken away again: some tokenizers drop a space at the start of a text.
LEAD_TOKENS = 8


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt, the stop and what came with it included. ``new_tokens`` counts its tokens, an
    end token among them."""

    text: str
    finish_reason: FinishReason
    new_tokens: int


class Completer:
    """A model ready to complete prompts under one configuration, on the GPU where there is one."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerateConfig, stops: tuple[str, ...]
    ) -> None:
        self.tokenizer, self.stops, self.max_new_tokens = tokenizer, stops, config.max_new_tokens
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = model.to(self.device)  # type: ignore[arg-type]
        self.context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.end_tokens = _end_tokens(model, tokenizer)
        padding = tokenizer.pad_token_id
        self.padding = padding if padding is not None else next(iter(self.end_tokens), 0)
        sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
        self.decoding = sampling if config.temperature else {"do_sample": False}
        # The checkpoint's own defaults (a temperature, a repetition penalty) would fill in what is not named above.
        self.model.generation_config = GenerationConfig()

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens may follow a prompt: none where the prompt alone fills the model's context."""
        if self.context_length is None:
            return self.max_new_tokens
        return max(0, min(self.max_new_tokens, self.context_length - len(prompt)))

    @torch.inference_mode()
    def complete(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Completion]:
        """Complete prompts, given as token ids, all at once. Sampling draws from ``seed`` alone."""
        rooms = [self.room(prompt) for prompt in prompts]
        open_rows = [row for row, room in enumerate(rooms) if room]
        completions = [Completion("", "prompt_too_long", 0)] * len(prompts)
        if not open_rows:
            return completions
        longest = max(len(prompts[row]) for row in open_rows)
        input_ids = torch.full((len(open_rows), longest), self.padding)
        attention_mask = torch.zeros_like(input_ids)
        for position, row in enumerate(open_rows):
            input_ids[position, longest - len(prompts[row]):] = torch.tensor(prompts[row])
            attention_mask[position, longest - len(prompts[row]):] = 1
        ends = _RowEnds(self, longest, [rooms[row] for row in open_rows])
        generation = GenerationConfig(
            max_new_tokens=max(rooms), eos_token_id=self.end_tokens or None, pad_token_id=self.padding, **self.decoding)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device),
                generation_config=generation, stopping_criteria=StoppingCriteriaList([ends]))
        for position, row in enumerate(open_rows):
            tokens = output[position, longest:longest + ends.lengths[position]].tolist()
            text = self._text(prompts[row], tokens)
            stopped = tokens[-1] in self.end_tokens or any(stop in text for stop in self.stops)
            completions[row] = Completion(text, "stop" if stopped else "length", len(tokens))
        return completions

    def _text(self, prompt: Sequence[int], tokens: list[int]) -> str:
        lead = list(prompt[-LEAD_TOKENS:])
        before, whole = (self.decode(ids, skip_special_tokens=True) for ids in (lead, lead + tokens))
        return whole[len(before):]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids, as it is: no spaces tidied up."""
        return str(self.tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))


class _RowEnds(StoppingCriteria):
    """Ends each row at an end token, at one of the stops, or when its room is used up; notes its length there."""

    def __init__(self, completer: Completer, prompt_length: int, rooms: list[int]) -> None:
        self.completer, self.prompt_length, self.rooms = completer, prompt_length, rooms
        self.lengths = [0] * len(rooms)
        # A token is a character at least, so these many hold a whole stop.
        self.tail = max(map(len, completer.stops), default=0) + 2

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        length = input_ids.shape[1] - self.prompt_length
        tails = input_ids[:, self.prompt_length:][:, -self.tail:].tolist()
        for row, tail in enumerate(tails):
            if not self.lengths[row] and (length >= self.rooms[row] or self._ends(tail)):
                self.lengths[row] = length
        return torch.tensor([bool(length) for length in self.lengths], device=input_ids.device)

    def _ends(self, tail: list[int]) -> bool:
        if tail[-1] in self.completer.end_tokens:
            return True
        text = self.completer.decode(tail)
        return any(stop in text for stop in self.completer.stops)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those of the checkpoint (chat models have a second one)."""
    found: set[int] = set()
    generation = getattr(model.generation_config, "eos_token_id", None)
    for value in (tokenizer.eos_token_id, generation, getattr(model.config.get_text_config(), "eos_token_id", None)):
        found |= set(value) if isinstance(value, list) else {value} if value is not None else set()
    return sorted(found)
