"""Experts assigned without hidden states: by a hash of the token, by a hash of its example, or at random.

Hash routing is arXiv 2106.04426, random routing arXiv 2110.04260 (THOR). Shape suffixes: T tokens, R routed experts.
"""

from typing import Any

import torch
from torch import nn

_ODD = -7046029254386353131, -4658895280553007687, -7723592293110705685  # of splitmix64, as signed numbers
_SIGN = 2**63 - 1  # all bits but the sign


class ForwardInputs:
    """The inputs of a model's latest call, for routers that need them. All routers of a model share one; see ``watch``."""

    def __init__(self) -> None:
        self.key_T: torch.Tensor | None = None

    def watch(self, model: nn.Module, by_example: bool) -> None:
        """Record every call of ``model`` from now on: its tokens or, while it trains, their examples."""
        def take(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            input_ids_BS = named.get("input_ids", given[0] if given else None)
            if input_ids_BS is None or (by_example and not model.training):
                self.key_T = None
            elif by_example:
                self.key_T = example_keys(input_ids_BS, named.get("position_ids"))
            else:
                self.key_T = input_ids_BS.reshape(-1)

        model.register_forward_pre_hook(take, with_kwargs=True)


def example_keys(input_ids_BS: torch.Tensor, position_ids_BS: torch.Tensor | None) -> torch.Tensor:
    """For every token, a number of its example, int64, shape T: a hash of the example's tokens in their order, whatever it is
    packed with. Without positions, every sequence is one example."""
    if position_ids_BS is None or position_ids_BS.shape != input_ids_BS.shape:
        position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device).expand_as(input_ids_BS)
    position_T = position_ids_BS.reshape(-1)
    example_T = (position_T == 0).cumsum(0) - 1
    part_T = mixed_bits(input_ids_BS.reshape(-1) + mixed_bits(position_T))
    whole_X = torch.zeros_like(part_T).index_add_(0, example_T, part_T)
    return whole_X[example_T]


def hash_order(key_T: torch.Tensor, num_routed: int) -> torch.Tensor:
    """An order of the experts for every key, as numbers whose largest comes first: int64, T,R."""
    expert_R = torch.arange(1, num_routed + 1, device=key_T.device)
    return mixed_bits(mixed_bits(key_T)[:, None] + mixed_bits(expert_R)) & _SIGN


def mixed_bits(x: torch.Tensor) -> torch.Tensor:
    """A hash whose bits each depend on all of ``x`` (int64): splitmix64, in wrapping arithmetic, the same on every device."""
    x = x * _ODD[0]
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _ODD[1]
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _ODD[2]
    return x ^ ((x >> 31) & (2**33 - 1))
