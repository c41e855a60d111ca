"""Complete prompts with transformers, for any model of this package. Batches are left-padded, every row ends separately, and
finished rows are removed to speed up the others. Prompts are read a few at a time, each padded to the longest of the few, and a
prompt that several rows share is read once."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList, TextStreamer
from transformers.cache_utils import DynamicCache
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.generation.completer import Completer, end_tokens
from xft_core.generation.kv_cache import GrowingLayer, growing_cache, joined_rows
from xft_core.moe.prompts import GeneratedPrompts, asks_prompts, tell_prompts
from xft_core.recipe.sections import GenerateConfig

READ_AT_ONCE = 8  # prompts: more are padded further, fewer make products too small


class TransformersCompleter(Completer):
    """Runs on the GPU if there is one. ``streamer`` receives the tokens of a single prompt's completion as they are written."""

    streamer: TextStreamer | None = None

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerateConfig, stops: tuple[str, ...]
    ) -> None:
        super().__init__(tokenizer, config, stops)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            # Heads share keys and values. Otherwise transformers copies them for each head, because the batch has a mask.
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
        self.model: Any = model.to(self.device)  # type: ignore[arg-type]
        text_config = model.config.get_text_config()
        self.context_length = getattr(text_config, "max_position_embeddings", None)
        self.end_tokens = end_tokens(tokenizer, model.generation_config, text_config)
        padding = tokenizer.pad_token_id
        self.padding = padding if padding is not None else next(iter(self.end_tokens), 0)
        sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
        self.decoding = sampling if config.temperature else {"do_sample": False}
        # Otherwise the checkpoint's own defaults (a temperature, a repetition penalty) would fill in settings not named above.
        self.model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], seed: int) -> list[list[int]]:
        """See Completer."""
        longest = max(map(len, prompts))
        input_ids = torch.full((len(prompts), longest), self.padding)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt):] = torch.tensor(prompt)
            attention_mask[row, longest - len(prompt):] = 1
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        generation = GenerationConfig(
            max_length=longest + max(rooms), eos_token_id=self.end_tokens or None, pad_token_id=self.padding,
            return_dict_in_generate=True, **self.decoding)
        written: list[list[int]] = [[] for _ in prompts]
        rows, cache = list(range(len(prompts))), self._read_prompts(prompts, input_ids, attention_mask)
        known_prompts = GeneratedPrompts(attention_mask)
        tell_prompts(self.model, known_prompts)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            while rows:  # each pass continues the unfinished rows
                ends = RowEnds(self, longest, [rooms[row] for row in rows])
                output = self.model.generate(
                    input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache,
                    generation_config=generation, stopping_criteria=StoppingCriteriaList([ends]), streamer=self.streamer)
                for row, tokens, length in zip(rows, output.sequences, ends.lengths, strict=True):
                    written[row] = tokens[longest:longest + length].tolist()
                going_on = [place for place, length in enumerate(ends.lengths) if not length]
                rows, cache = [rows[place] for place in going_on], output.past_key_values
                known_prompts.keep(going_on)
                cache.batch_select_indices(torch.tensor(going_on, dtype=torch.long, device=self.device))
                num_new = output.sequences.shape[1] - input_ids.shape[1]
                input_ids, attention_mask = output.sequences[going_on], F.pad(attention_mask[going_on], (0, num_new), value=1)
        return written

    def _read_prompts(
        self, prompts: Sequence[Sequence[int]], input_ids: torch.Tensor, attention_mask: torch.Tensor,
    ) -> DynamicCache:
        """Return a cache with all tokens of the prompts but the last. It is empty where reading the prompts apart saves less
        than a tenth of their tokens and padding, and where a layer has to see all prompts at once."""
        empty = growing_cache(self.model)
        first: dict[tuple[int, ...], int] = {}
        sources = [first.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]
        different = sorted(first.values(), key=lambda row: -len(prompts[row]))
        keeps_all = all(type(layer) is GrowingLayer for layer in empty.layers)  # a window's layer cannot be put together
        at_once = READ_AT_ONCE if keeps_all else len(different)
        groups = [different[start:start + at_once] for start in range(0, len(different), at_once)]
        padded = sum(len(group) * len(prompts[group[0]]) for group in groups)
        if 10 * padded > 9 * input_ids.numel() or min(map(len, prompts)) < 2 or asks_prompts(self.model):
            return empty
        caches = []
        for group in groups:
            read, unused = growing_cache(self.model), input_ids.shape[1] - len(prompts[group[0]])
            self.model.generate(  # the token that it writes is not used
                input_ids=input_ids[group, unused:-1], attention_mask=attention_mask[group, unused:-1], past_key_values=read,
                generation_config=GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=self.padding))
            caches.append(read)
        places = {row: (number, place) for number, group in enumerate(groups) for place, row in enumerate(group)}
        return joined_rows(caches, [places[source] for source in sources])


class RowEnds(StoppingCriteria):
    """Ends each row at an end token, at a stop, or when its room is used up, and records its length. Ends all rows once half of
    them have ended, because the others are faster without them."""

    def __init__(self, completer: Completer, prompt_length: int, rooms: Sequence[int]) -> None:
        self.completer, self.prompt_length, self.rooms = completer, prompt_length, rooms
        self.lengths = [0] * len(rooms)
        # A token has at least one character, so this many tokens hold a complete stop.
        self.tail = max(map(len, completer.stops), default=0) + 2

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        length = input_ids.shape[1] - self.prompt_length
        tails = input_ids[:, self.prompt_length:][:, -self.tail:].tolist()
        for row, tail in enumerate(tails):
            if not self.lengths[row] and (length >= self.rooms[row] or self._ends(tail)):
                self.lengths[row] = length
        ended = [bool(length) for length in self.lengths]
        return torch.tensor([True] * len(ended) if 2 * sum(ended) >= len(ended) else ended, device=input_ids.device)

    def _ends(self, tail: list[int]) -> bool:
        if tail[-1] in self.completer.end_tokens:
            return True
        text = self.completer.decode(tail)
        return any(stop in text for stop in self.completer.stops)
