"""The routed experts as stacked weights, and the block that takes an FFN's place in its decoder layer.

Shape suffixes: B batch, S sequence, T = B * S tokens, X sampled tokens, D hidden size, F FFN size, E or R routed experts,
K experts per token.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import grouped_mm_experts_forward

from xft_core.families import Family
from xft_core.moe.dense_gradient import with_dense_gradient
from xft_core.moe.diversity import overlap
from xft_core.moe.hierarchical import HierarchicalRouter, nodes_of
from xft_core.moe.low_rank import LowRankExperts, output_dropout
from xft_core.moe.router import Router, Routing
from xft_core.recipe.sections import UpcycleConfig


class RoutedExperts(nn.Module):
    """FFNs of one shape with stacked weights: ``gate_up_proj`` E,2F,D (or ``up_proj`` E,F,D), ``down_proj`` E,D,F, biases.
    In a family with transposed linear layers, weights are E,D,F and E,F,D.

    Attribute names are those that transformers' expert kernels read.
    """

    has_post_expert_norm = False
    _is_expert_parallel = False

    def __init__(self, dense_mlp: nn.Module, family: Family, num_experts: int) -> None:
        """Allocate ``num_experts`` copies of ``dense_mlp``; values come from a checkpoint."""
        super().__init__()
        self.num_experts = num_experts
        self.down_scale = 1.0  # factor with which ``down_proj`` is stored (UpcycleConfig.down_scales)
        self.skips_zero_weights = False  # if set, slots of weight 0 are not computed on a CPU, and get no gradient
        self.has_gate = family.gated
        self.is_transposed = family.transposed
        self.up_parameter = family.up_parameter
        up = [getattr(dense_mlp, name) for name in family.up]
        down = getattr(dense_mlp, family.down)
        self.has_bias = down.bias is not None
        self.act_fn = getattr(dense_mlp, family.activation)
        self.dropout = output_dropout(dense_mlp, family)
        axis, like = int(family.transposed), down.weight
        up_shape, down_shape = list(up[0].weight.shape), list(like.shape)
        up_shape[axis] = sum(layer.weight.shape[axis] for layer in up)
        self._add(family.up_parameter, like, *up_shape)
        self._add("down_proj", like, *down_shape)
        if self.has_bias:
            self._add(f"{family.up_parameter}_bias", like, up_shape[axis])
            self._add("down_proj_bias", like, down_shape[axis])

    def forward(self, x_TD: torch.Tensor, expert_index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """sum_k weight_TK[:, k] * E_{expert_index_TK[:, k]}(x), shape T,D."""
        if self.down_scale != 1:
            weight_TK = weight_TK / self.down_scale
        # One grouped matrix product on a GPU; on a CPU a loop over experts, which also takes fp64.
        if x_TD.is_cuda:
            y_TD = grouped_mm_experts_forward(self._for_kernel(), x_TD, expert_index_TK, weight_TK)
        else:
            y_TD = self._loop_forward(x_TD, expert_index_TK, weight_TK)
        return F.dropout(y_TD, self.dropout, self.training) if self.dropout else y_TD

    def outputs_RTD(self, x_TD: torch.Tensor) -> torch.Tensor:
        """E_i(x) of every routed expert for every token, without dropout."""
        none = [None] * self.num_experts
        up_bias_E = getattr(self, f"{self.up_parameter}_bias").unbind() if self.has_bias else none
        down_bias_E = self.down_proj_bias.unbind() if self.has_bias else none
        weights = zip(getattr(self, self.up_parameter).unbind(), up_bias_E, self.down_proj.unbind(), down_bias_E, strict=True)
        outputs = []
        for up, up_bias, down, down_bias in weights:
            if self.is_transposed:
                up, down = up.t(), down.t()
            h = F.linear(x_TD, up, up_bias)
            outputs.append(F.linear(self._apply_gate(h) if self.has_gate else self.act_fn(h), down, down_bias))
        return torch.stack(outputs) if self.down_scale == 1 else torch.stack(outputs) / self.down_scale

    def _for_kernel(self) -> Any:
        """These experts as the kernel reads them. Under autocast, weights are cast here, because the kernel does not do it."""
        if not torch.is_autocast_enabled("cuda"):
            return self
        dtype = torch.get_autocast_dtype("cuda")
        return SimpleNamespace(
            num_experts=self.num_experts, has_gate=self.has_gate, has_bias=self.has_bias, act_fn=self.act_fn,
            is_transposed=self.is_transposed, has_post_expert_norm=self.has_post_expert_norm,
            _is_expert_parallel=self._is_expert_parallel, _apply_gate=self._apply_gate,
            **{name: parameter.to(dtype) for name, parameter in self.named_parameters(recurse=False)})

    def _loop_forward(self, x_TD: torch.Tensor, expert_index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        # oneDNN compiles 16-bit products for every number of rows: pad to few different numbers.
        in_16_bits = x_TD.dtype.itemsize == 2 or torch.is_autocast_enabled(x_TD.device.type)
        slots = torch.sort(expert_index_TK.reshape(-1), stable=True).indices
        if self.skips_zero_weights:
            slots = slots[weight_TK.detach().reshape(-1)[slots] != 0]
        counts = torch.bincount(expert_index_TK.reshape(-1)[slots], minlength=self.num_experts).tolist()
        # unbind, not indexing: its backward stacks the experts' gradients once instead of adding E zero-filled copies.
        up_E, down_E = getattr(self, self.up_parameter).unbind(), self.down_proj.unbind()
        if self.is_transposed:
            up_E, down_E = ([weight.t() for weight in weight_E] for weight_E in (up_E, down_E))
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
    """y = w_0 E_0(x) + sum_i w_i E_i(x), in place of an FFN. The shared expert E_0 is the family's own FFN module.

    Low-rank experts are changes of that module; without a shared expert, it still serves as their ``base``.
    ``routing`` holds the router's decisions of the latest forward pass before which ``keep_routing`` was set. Not of every
    pass: one repeated by gradient checkpointing would keep its activations alive until the next step.
    ``overlap_tokens_X``: the tokens on which the loss of moe/diversity.py is computed in training.
    """

    def __init__(self, dense_mlp: nn.Module, family: Family, upcycle: UpcycleConfig) -> None:
        super().__init__()
        weight = getattr(dense_mlp, family.down).weight
        hidden_size = weight.shape[int(family.transposed)]
        self.family = family
        router = HierarchicalRouter if upcycle.groups else Router
        self.router: Router = router(hidden_size, upcycle).to(device=weight.device, dtype=weight.dtype)
        if upcycle.routing == "top_p":
            self.router.add_top_p()
        self.experts: RoutedExperts | LowRankExperts
        if upcycle.expert_rank is None:
            self.experts = RoutedExperts(dense_mlp, family, upcycle.num_routed)
            self.experts.skips_zero_weights = upcycle.routing == "top_p"
            self.experts.down_scale = upcycle.down_scales[1]
        else:
            self.experts = LowRankExperts(dense_mlp, family, upcycle)
            if not upcycle.shared_expert:
                self.base = dense_mlp
        self.shared_expert = dense_mlp if upcycle.shared_expert else None
        self.adds_residual = family.adds_residual
        self.routing: Routing | None = None
        self.keep_routing = False
        self.overlap_tokens_X: torch.Tensor | None = None

    def forward(self, hidden_states_BSD: torch.Tensor, residual_BSD: torch.Tensor | None = None) -> torch.Tensor:
        """The mixture's output, of the input's shape and dtype, plus the residual if the family's FFN adds it."""
        x_TD = hidden_states_BSD.reshape(-1, hidden_states_BSD.shape[-1])
        routing = self.router(x_TD)
        weight_TK, shared_TD = routing.weight_TK, None
        if routing.dense_weight_TN is not None:
            weight_TK = weight_TK.detach()
        if isinstance(self.experts, LowRankExperts):
            y_TD = self.experts(x_TD, *nodes_of(routing, weight_TK, self.router.upcycle))
            if routing.dense_weight_TN is not None and self.shared_expert is not None:
                shared_TD = self._shared(x_TD)
        elif self.shared_expert is None:
            y_TD = self.experts(x_TD, routing.expert_index_TK, weight_TK)
        else:
            y_TD = self.experts(x_TD, routing.expert_index_TK[:, :-1] - 1, weight_TK[:, :-1])
            shared_TD = self._shared(x_TD)
            y_TD = (y_TD + shared_TD * weight_TK[:, -1:]).to(x_TD.dtype)
        if routing.dense_weight_TN is not None:
            y_TD = with_dense_gradient(y_TD, routing.dense_weight_TN, x_TD, shared_TD, self.experts.outputs_RTD)
        if self.training and self.overlap_tokens_X is not None:
            routing.overlap = self._overlap(x_TD, routing, self.overlap_tokens_X)
        if self.keep_routing:
            self.routing, self.keep_routing = routing, False
        y_BSD = y_TD.reshape(hidden_states_BSD.shape)
        return y_BSD if residual_BSD is None else residual_BSD + y_BSD

    def _shared(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The shared expert's output. An FFN that adds the residual gets zeros here, because its output is weighted."""
        assert self.shared_expert is not None
        shared_TD: torch.Tensor = self.shared_expert(x_TD, *([torch.zeros_like(x_TD)] if self.adds_residual else []))
        scale = self.router.upcycle.down_scales[0]
        return shared_TD if scale == 1 else shared_TD / scale

    def _overlap(self, x_TD: torch.Tensor, routing: Routing, tokens_X: torch.Tensor) -> torch.Tensor:
        x_XD, index_XK = x_TD[tokens_X].detach(), routing.expert_index_TK[tokens_X]
        is_active_XK = torch.ones_like(index_XK) if routing.active_TK is None else routing.active_TK[tokens_X].long()
        active_XN = torch.zeros(len(x_XD), self.router.upcycle.num_experts, dtype=torch.long, device=x_TD.device)
        active_XR = active_XN.scatter_add(1, index_XK, is_active_XK)[:, int(self.shared_expert is not None):] > 0
        outputs_RXD = self.experts.outputs_RTD(x_XD)
        if self.shared_expert is None:
            return overlap(outputs_RXD, outputs_RXD.mean(0), active_XR)
        self.shared_expert.eval()  # without dropout
        reference_XD = self._shared(x_XD)
        self.shared_expert.train()
        return overlap(outputs_RXD, reference_XD, active_XR)


def _round_up(count: int) -> int:
    """Round up by at most a sixteenth, so that there are 16 numbers between a power of two and the next."""
    bits = max(0, count.bit_length() - 5)
    return -(-count >> bits) << bits
