"""Training as a merge (ExFusion, arXiv 2603.27965): all tokens go through one FFN whose weights are a mixture of the experts'.

    y = FFN(x; W(c)),  W(c) = sum_i c_i W_i        while training c ~ Dirichlet(kappa), else c_i = 1/N

c is drawn for each layer and forward pass: with a fixed c, all experts would get the same gradient, which is dense SFT. A step
costs as much as a dense step plus the sums. In evaluation, the model already computes the merge at c_i = 1/N.
"""

import torch
import torch.nn.functional as F
from torch import nn

from xft_core.families import Family
from xft_core.moe.experts import RoutedExperts
from xft_core.recipe.sections import UpcycleConfig


class FusionBlock(nn.Module):
    """Replaces an FFN like MoeBlock does, with the same names for the experts' weights, but without a router."""

    def __init__(self, dense_mlp: nn.Module, family: Family, upcycle: UpcycleConfig) -> None:
        super().__init__()
        self.experts = RoutedExperts(dense_mlp, family, upcycle.num_experts)
        self._concentration = upcycle.fusion_concentration
        self._num_up = len(family.up)

    def forward(self, hidden_states_BSD: torch.Tensor, residual_BSD: torch.Tensor | None = None) -> torch.Tensor:
        """The output of the mixed FFN, of the input's shape, plus the residual if the family's FFN adds it."""
        experts, shares = self.experts, self.shares()
        # In the same parts as the dense FFN: if one expert's share is 1, the result equals that expert bit for bit.
        up = self._mixed(experts.up_parameter, shares).chunk(self._num_up)
        up_bias: tuple[torch.Tensor | None, ...] = (None,) * self._num_up
        if experts.has_bias:
            up_bias = self._mixed(f"{experts.up_parameter}_bias", shares).chunk(self._num_up)
        wide = [F.linear(hidden_states_BSD, weight, bias) for weight, bias in zip(up, up_bias, strict=True)]
        if experts.has_gate:
            gate, value = wide if len(wide) == 2 else wide[0].chunk(2, dim=-1)
            h = experts.act_fn(gate) * value
        else:
            h = experts.act_fn(wide[0])
        down_bias = self._mixed("down_proj_bias", shares) if experts.has_bias else None
        y_BSD = F.linear(h, self._mixed("down_proj", shares), down_bias)
        y_BSD = F.dropout(y_BSD, experts.dropout, self.training) if experts.dropout else y_BSD
        return y_BSD if residual_BSD is None else residual_BSD + y_BSD

    def shares(self) -> list[float]:
        """c of this forward pass, drawn on the CPU so that it is the same on any device."""
        number = self.experts.num_experts
        if not self.training:
            return [1 / number] * number
        drawn: list[float] = torch.distributions.Dirichlet(
            torch.full((number,), self._concentration, dtype=torch.float64)).sample().tolist()
        return drawn

    def _mixed(self, name: str, shares: list[float]) -> torch.Tensor:
        """sum_i c_i W_i, summed in fp32 at least and rounded once."""
        first, *others = getattr(self.experts, name).unbind()
        dtype = torch.promote_types(first.dtype, torch.float32)
        mixed = first.to(dtype) * shares[0]
        for weights, share in zip(others, shares[1:], strict=True):
            mixed = mixed + weights.to(dtype) * share
        mixed = mixed.to(first.dtype)
        return mixed.t() if self.experts.is_transposed and mixed.dim() == 2 else mixed
