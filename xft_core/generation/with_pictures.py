"""Complete prompts with pictures, one prompt at a time: the tensors of a picture differ from family to family."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from xft_core.generation.completer import Completion
from xft_core.generation.with_transformers import RowEnds, TransformersCompleter
from xft_core.moe.prompts import GeneratedPrompts, tell_prompts


class PictureCompleter(TransformersCompleter):
    """Set ``pictures`` before each call of ``complete``: for every prompt, the processor's tensors other than the tokens."""

    pictures: Sequence[dict[str, Any]] = ()

    def complete(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Completion]:
        """See Completer."""
        self._open = [pictures for prompt, pictures in zip(prompts, self.pictures, strict=True) if self.room(prompt)]
        return super().complete(prompts, seed)

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], seed: int) -> list[list[int]]:
        """See Completer."""
        written = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for prompt, room, pictures in zip(prompts, rooms, self._open, strict=True):
                input_ids = torch.tensor([prompt], device=self.device)
                attention_mask = torch.ones_like(input_ids)
                tell_prompts(self.model, GeneratedPrompts(attention_mask))
                ends = RowEnds(self, len(prompt), [room])
                output = self.model.generate(
                    input_ids=input_ids, attention_mask=attention_mask, stopping_criteria=StoppingCriteriaList([ends]),
                    generation_config=GenerationConfig(
                        max_length=len(prompt) + room, eos_token_id=self.end_tokens or None, pad_token_id=self.padding,
                        return_dict_in_generate=True, **self.decoding),
                    **{name: item.to(self.device, self.model.dtype if item.is_floating_point() else item.dtype)
                       for name, item in pictures.items()})
                written.append(output.sequences[0, len(prompt):len(prompt) + ends.lengths[0]].tolist())
        return written
