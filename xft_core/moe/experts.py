"""The routed experts as stacked weights, and the block that takes an FFN's place in its decoder layer.

Shape suffixes: B batch, S sequence, T = B * S tokens, D hidden size, F FFN size, E routed experts, K experts per token.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import grouped_mm_experts_forward

from xft_core.families import Family
from xft_core.moe.hierarchical import HierarchicalRouter, nodes_of
from xft_core.moe.low_rank import LowRankExperts
from xft_core.moe.router import Router, Routing
from xft_core.recipe.sections import UpcycleConfig


class RoutedExperts(nn.Module):
    """FFNs of one shape with stacked weights: ``gate_up_proj`` E,2F,D (or ``up_proj`` E,F,D), ``down_proj`` E,D,F, biases.

    Attribute names are those that transformers' expert kernels read.
    """

    has_post_expert_norm = False
    is_transposed = False
    _is_expert_parallel = False

    def __init__(self, dense_mlp: nn.Module, family: Family, num_experts: int) -> None:
        """Room for ``num_experts`` copies of ``dense_mlp``; values come from a checkpoint or ``copy_dense``."""
        super().__init__()
        self.num_experts = num_experts
        self.has_gate = family.gated
        self.up_parameter = family.up_parameter
        up = [getattr(dense_mlp, name) for name in family.up]
        down = getattr(dense_mlp, family.down)
        self.has_bias = down.bias is not None
        self.act_fn = getattr(dense_mlp, family.activation)
        self.dropout = float(getattr(dense_mlp, "residual_dropout", 0.0))
        num_rows = sum(layer.out_features for layer in up)
        like = down.weight
        self._add(family.up_parameter, like, num_rows, up[0].in_features)
        self._add("down_proj", like, down.out_features, down.in_features)
        if self.has_bias:
            self._add(f"{family.up_parameter}_bias", like, num_rows)
            self._add("down_proj_bias", like, down.out_features)

    def forward(self, x_TD: torch.Tensor, expert_index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """sum_k weight_TK[:, k] * E_{expert_index_TK[:, k]}(x), shape T,D."""
        # One grouped matrix product on a GPU; on a CPU a loop over experts, which also takes fp64.
        if x_TD.is_cuda:
            y_TD = grouped_mm_experts_forward(self._for_kernel(), x_TD, expert_index_TK, weight_TK)
        else:
            y_TD = self._loop_forward(x_TD, expert_index_TK, weight_TK)
        return F.dropout(y_TD, self.dropout, self.training) if self.dropout else y_TD

    def outputs_RTD(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The output of every routed expert for every token, shape R,T,D."""
        none = [None] * self.num_experts
        up_bias_E = getattr(self, f"{self.up_parameter}_bias").unbind() if self.has_bias else none
        down_bias_E = self.down_proj_bias.unbind() if self.has_bias else none
        outputs = []
        for up, up_bias, down, down_bias in zip(
                getattr(self, self.up_parameter).unbind(), up_bias_E, self.down_proj.unbind(), down_bias_E, strict=True):
            h = F.linear(x_TD, up, up_bias)
            outputs.append(F.linear(self._apply_gate(h) if self.has_gate else self.act_fn(h), down, down_bias))
        return torch.stack(outputs).to(x_TD.dtype)

    def _for_kernel(self) -> Any:
        """These experts as the kernel reads them: under autocast with weights cast, since it does not cast them itself."""
        if not torch.is_autocast_enabled("cuda"):
            return self
        dtype = torch.get_autocast_dtype("cuda")
        return SimpleNamespace(
            num_experts=self.num_experts, has_gate=self.has_gate, has_bias=self.has_bias, act_fn=self.act_fn,
            is_transposed=self.is_transposed, has_post_expert_norm=self.has_post_expert_norm,
            _is_expert_parallel=self._is_expert_parallel, _apply_gate=self._apply_gate,
            **{name: parameter.to(dtype) for name, parameter in self.named_parameters(recurse=False)})

    def _loop_forward(self, x_TD: torch.Tensor, expert_index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        # Products of 16 bits are compiled for every number of rows (oneDNN): some rows more, for few of such numbers.
        in_16_bits = x_TD.dtype.itemsize == 2 or torch.is_autocast_enabled(x_TD.device.type)
        slots = torch.sort(expert_index_TK.reshape(-1), stable=True).indices
        counts = torch.bincount(expert_index_TK.reshape(-1), minlength=self.num_experts).tolist()
        # unbind, not indexing: its backward stacks the experts' gradients once instead of adding E zero-filled copies.
        up_E, down_E = getattr(self, self.up_parameter).unbind(), self.down_proj.unbind()
        up_bias_E = getattr(self, f"{self.up_parameter}_bias").unbind() if self.has_bias else [None] * self.num_experts
        down_bias_E = self.down_proj_bias.unbind() if self.has_bias else [None] * self.num_experts
        y_TD = torch.zeros(x_TD.shape, dtype=torch.promote_types(x_TD.dtype, weight_TK.dtype), device=x_TD.device)
        for expert, slots_of_expert in enumerate(slots.split(counts)):
            token = slots_of_expert // expert_index_TK.shape[1]
            rows = F.pad(token, (0, _round_up(len(token)) - len(token))) if in_16_bits else token
            h = F.linear(x_TD.index_select(0, rows), up_E[expert], up_bias_E[expert])
            h = self._apply_gate(h) if self.has_gate else self.act_fn(h)
            h = F.linear(h, down_E[expert], down_bias_E[expert])[:len(token)]
            y_TD.index_add_(0, token, (h * weight_TK.reshape(-1)[slots_of_expert, None]).to(y_TD.dtype))
        return y_TD.to(x_TD.dtype)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def _add(self, name: str, like: torch.Tensor, *shape: int) -> None:
        self.register_parameter(
            name, nn.Parameter(torch.empty(self.num_experts, *shape, dtype=like.dtype, device=like.device)))


class MoeBlock(nn.Module):
    """y = w_0 E_0(x) + sum_i w_i E_i(x), where an FFN was. The shared expert E_0 is the family's own FFN module.

    Low-rank experts are changes of it; where there is no shared expert, it is there all the same as their ``base``.
    ``routing`` holds what the router decided in the latest forward pass before which ``keep_routing`` was set. Not in
    every one: a pass repeated by gradient checkpointing would keep its activations alive until the next step.
    """

    def __init__(self, dense_mlp: nn.Module, family: Family, upcycle: UpcycleConfig) -> None:
        super().__init__()
        hidden_size = getattr(dense_mlp, family.down).out_features
        weight = getattr(dense_mlp, family.down).weight
        router = HierarchicalRouter if upcycle.groups else Router
        self.router: Router = router(hidden_size, upcycle).to(device=weight.device, dtype=weight.dtype)
        self.experts: RoutedExperts | LowRankExperts
        if upcycle.expert_rank is None:
            self.experts = RoutedExperts(dense_mlp, family, upcycle.num_routed_experts)
        else:
            self.experts = LowRankExperts(dense_mlp, family, upcycle)
            if not upcycle.shared_expert:
                self.base = dense_mlp
        self.shared_expert = dense_mlp if upcycle.shared_expert else None
        self.routing: Routing | None = None
        self.keep_routing = False

    def forward(self, hidden_states_BSD: torch.Tensor) -> torch.Tensor:
        """The mixture's output, of the input's shape and dtype."""
        x_TD = hidden_states_BSD.reshape(-1, hidden_states_BSD.shape[-1])
        routing = self.router(x_TD)
        if self.keep_routing:
            self.routing, self.keep_routing = routing, False
        if isinstance(self.experts, LowRankExperts):
            y_TD = self.experts(x_TD, *nodes_of(routing, self.router.upcycle))
        elif self.shared_expert is None:
            y_TD = self.experts(x_TD, routing.expert_index_TK, routing.weight_TK)
        else:
            y_TD = self.experts(x_TD, routing.expert_index_TK[:, :-1] - 1, routing.weight_TK[:, :-1])
            shared_TD = self.shared_expert(x_TD)
            y_TD = (y_TD + shared_TD * routing.weight_TK[:, -1:]).to(x_TD.dtype)
        return y_TD.reshape(hidden_states_BSD.shape)


def _round_up(count: int) -> int:
    """At most a sixteenth more, so that there are 16 numbers between a power of two and the next."""
    bits = max(0, count.bit_length() - 5)
    return -(-count >> bits) << bits
