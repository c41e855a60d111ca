"""A key-value cache that is extended in place. The transformers cache is copied completely for every token."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 128  # spare tokens in a new buffer


def growing_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache for a model. Layers that keep only a window use the transformers cache."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def joined_rows(caches: Sequence[DynamicCache], rows: Sequence[tuple[int, int]]) -> DynamicCache:
    """Return one cache with the given rows, each told by its cache and its place there. Shorter rows are padded on the left.
    Several caches must consist of GrowingLayers."""
    sizes = [len(cache.layers[0].keys) for cache in caches]
    chosen = torch.tensor([sum(sizes[:number]) + place for number, place in rows], device=caches[0].layers[0].keys.device)
    joined = caches[0]
    if len(caches) == 1:
        joined.batch_select_indices(chosen)
        return joined
    longest = max(cache.get_seq_length() for cache in caches)
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        for name in ("keys", "values"):
            parts = [getattr(layer, name) for layer in layers]
            whole = torch.cat([F.pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts])
            setattr(joined.layers[index], name, whole[chosen.to(whole.device)])
    return joined


class GrowingLayer(DynamicLayer):
    """``keys`` and ``values`` (batch, heads, tokens, head size) are the filled part of longer buffers."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, torch.Tensor] = {}

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Append, and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, filled: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        length = filled.shape[-2] if filled.numel() else 0
        buffer = self._buffers.get(name)
        # Selecting rows or cropping gives new tensors that are not part of the buffer. Then the buffer is rebuilt.
        is_part = buffer is not None and filled.data_ptr() == buffer.data_ptr() and filled.shape[:-2] == buffer.shape[:-2]
        if buffer is None or not is_part or buffer.shape[-2] < length + new.shape[-2]:
            buffer = new.new_empty(*new.shape[:-2], length + new.shape[-2] + ROOM, new.shape[-1])
            if length:
                buffer[..., :length, :] = filled
            self._buffers[name] = buffer
        buffer[..., length:length + new.shape[-2], :] = new
        return buffer[..., :length + new.shape[-2], :]
