"""A key-value cache that is written into, where transformers' own is copied whole for every token."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 128  # tokens that a buffer is made longer than what is put into it


def growing_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for a model. Layers that keep a window only are transformers' own."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class GrowingLayer(DynamicLayer):
    """``keys`` and ``values`` (batch, heads, tokens, head size) are the filled part of longer buffers."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, torch.Tensor] = {}

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Append, and return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, filled: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        length = filled.shape[-2] if filled.numel() else 0
        buffer = self._buffers.get(name)
        # Chosen rows, and what was cut, are tensors of their own: then the buffer is made again.
        is_part = buffer is not None and filled.data_ptr() == buffer.data_ptr() and filled.shape[:-2] == buffer.shape[:-2]
        if buffer is None or not is_part or buffer.shape[-2] < length + new.shape[-2]:
            buffer = new.new_empty(*new.shape[:-2], length + new.shape[-2] + ROOM, new.shape[-1])
            if length:
                buffer[..., :length, :] = filled
            self._buffers[name] = buffer
        buffer[..., length:length + new.shape[-2], :] = new
        return buffer[..., :length + new.shape[-2], :]
