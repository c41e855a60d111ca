"""Put a Mixture-of-Experts in place of a decoder layer's FFN, even if that FFN has no module of its own."""

import torch
from torch import nn

from xft_core.families import Family
from xft_core.moe.experts import MoeBlock
from xft_core.moe.fusion import FusionBlock
from xft_core.recipe.sections import UpcycleConfig


class InlineFfn(nn.Module):
    """The FFN that a decoder layer computes itself, down(act(up(x))), as a module: its linear layers under their names."""

    def __init__(self, layer: nn.Module, family: Family) -> None:
        super().__init__()
        self.up, self.down, self.activation = family.up[0], family.down, family.activation
        for name in (self.up, self.down, self.activation):
            setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The FFN's output, of the input's shape."""
        h = getattr(self, self.activation)(getattr(self, self.up)(hidden_states))
        output: torch.Tensor = getattr(self, self.down)(h)
        return output


def place_block(layer: nn.Module, family: Family, upcycle: UpcycleConfig) -> MoeBlock | FusionBlock:
    """Put a MoE block, or the block of training as a merge, in place of the FFN of ``layer``, and return it. Weights are not
    initialised.

    If the layer computes down(act(up(x))) itself, the block takes the place of ``up``, and ``act`` and ``down`` become the
    identity. The rest of the layer (norms, dropout, the residual) stays unchanged.
    """
    kind = FusionBlock if upcycle.mode == "fusion" else MoeBlock
    if family.mlp:
        block = kind(layer.get_submodule(family.mlp), family, upcycle)
    else:
        assert not family.gated and not family.adds_residual, "a gated FFN needs a module of its own"
        block = kind(InlineFfn(layer, family), family, upcycle)
        for name in (family.activation, family.down):
            setattr(layer, name, nn.Identity())
    layer.set_submodule(family.block, block)
    return block
