"""Compute attention of packed examples on a CPU, example by example.

transformers separates packed examples with a mask over the whole sequence, and torch's CPU kernel also computes everything
that the mask discards: S^2 products where the sum of length^2 would be enough. Here the mask is cut along its diagonal, between
examples, and transformers' own attention is called for each block. A family's mask (a sliding window) still applies within the
block. In training, 16-bit attention is computed in fp32: torch's CPU kernel takes 2 to 7 times as long for its 16-bit gradient.
Shape suffixes: B sequences, S tokens, H heads, D size of a head.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_example"
LEAST_BLOCK = 64  # tokens: shorter examples, and padding, share a block


@dataclass(frozen=True)
class Block:
    """Consecutive examples: their number of tokens, and their mask (1,1,S,S; None: attention is causal)."""

    length: int
    mask: torch.Tensor | None


def attend_by_example(model: PreTrainedModel) -> None:
    """Make a model on a CPU that uses torch's attention compute it block by block from now on."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
    """The mask passed to attention: the blocks of every sequence of the batch. Anything but packed examples keeps the usual
    mask."""
    mask_B1SS = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    if mask_B1SS is None or attention_mask is not None or mask_B1SS.shape[-2] != mask_B1SS.shape[-1]:
        return mask_B1SS
    return [_blocks(mask_SS) for mask_SS in mask_B1SS[:, 0]]


def _blocks(mask_SS: torch.Tensor) -> list[Block]:
    """Blocks of a sequence. A token that cannot see the one before it begins an example."""
    begins = (~mask_SS.diagonal(-1)).nonzero().flatten() + 1
    ends = [0]
    for end in [*begins.tolist(), len(mask_SS)]:
        if end - ends[-1] >= LEAST_BLOCK or end == len(mask_SS):
            ends.append(end)
    blocks = []
    for start, end in pairwise(ends):
        length, mask = end - start, mask_SS[None, None, start:end, start:end]
        blocks.append(Block(length, None if int(mask.sum()) == length * (length + 1) // 2 else mask))
    return blocks


def _attention(
    module: torch.nn.Module, query_BHSD: torch.Tensor, key_BHSD: torch.Tensor, value_BHSD: torch.Tensor, attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if not isinstance(attention_mask, list):
        return sdpa_attention_forward(module, query_BHSD, key_BHSD, value_BHSD, attention_mask, **kwargs)
    is_autocast = torch.is_autocast_enabled("cpu")
    if query_BHSD.requires_grad and (is_autocast or query_BHSD.dtype.itemsize == 2):
        dtype = torch.get_autocast_dtype("cpu") if is_autocast else query_BHSD.dtype
        with torch.autocast("cpu", enabled=False):
            y_BSHD, _ = _attention(
                module, query_BHSD.float(), key_BHSD.float(), value_BHSD.float(), attention_mask, **kwargs)
        return y_BSHD.to(dtype), None
    rows = []
    for blocks, *row in zip(attention_mask, *(item.split(1) for item in (query_BHSD, key_BHSD, value_BHSD)), strict=True):
        parts = zip(blocks, *(item.split([block.length for block in blocks], dim=2) for item in row), strict=True)
        rows.append(torch.cat([
            sdpa_attention_forward(module, query, key, value, block.mask, **kwargs)[0]
            for block, query, key, value in parts], dim=1))
    return torch.cat(rows), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
