"""Experts that are low-rank changes of shared weights, with one product of the shared weights for all experts.

    W_i = W_s + (alpha / r) B_i A_i          for gate, up and down; A_i random, B_i zero at the start (DeRS, arXiv 2503.01359)

The products with W_s are computed once for each token, and each expert adds its own:

    G = W_g x,  U = W_u x
    h_i = act(G + B_gi A_gi x) * (U + B_ui A_ui x)
    y   = W_d sum_i w_i h_i + sum_i w_i B_di A_di h_i

This is exact, because the down projection is linear and the same for all. Each expert has its own full change of a bias.

A *part* is the low-rank change of one expert, or of a group of experts (hierarchical.py). A *node* is the target of a token's
slot: an expert (its own part and its group's), a group (its part), or W_s itself (no parts).

Shape suffixes: T tokens, D hidden size, F FFN size, I inputs and O outputs of a layer, R routed experts, K slots of a token,
E nodes, P parts, C low-rank columns of all parts side by side.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn

from xft_core.families import Family
from xft_core.moe.mixed_hidden import Into, Nodes, mixed_hidden
from xft_core.recipe.sections import UpcycleConfig


@dataclass(frozen=True)
class Level:
    """Parts of one rank: those of the experts, or those of their groups. ``prefix`` begins the names of their tensors."""

    prefix: str
    count: int
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor of B A, as in LoRA (arXiv 2106.09685)."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Parts:
    """The parts of an upcycled model's layer: those of the experts, then those of the groups if there are any."""

    upcycle: UpcycleConfig

    @cached_property
    def levels(self) -> list[Level]:
        """One level, or two with groups."""
        upcycle = self.upcycle
        assert upcycle.expert_rank is not None
        found = [Level("", upcycle.num_routed, upcycle.expert_rank, upcycle.expert_alpha)]
        if upcycle.groups is not None:
            found.append(Level("group_", upcycle.groups, upcycle.group_rank, upcycle.expert_alpha))
        return found

    @cached_property
    def of_nodes(self) -> tuple[tuple[int, ...], ...]:
        """Parts of each node: of every routed expert, of every group, and none for W_s."""
        routed, groups = self.upcycle.num_routed, self.upcycle.groups
        if groups is None:
            return (*((expert,) for expert in range(routed)), ())
        size = routed // groups
        leaves = ((expert, routed + expert // size) for expert in range(routed))
        return (*leaves, *((routed + group,) for group in range(groups)), ())

    def columns(self, more: int) -> tuple[slice, ...]:
        """The columns of each part, if it has ``more`` in addition to its rank."""
        widths = [level.rank + more for level in self.levels for _ in range(level.count)]
        return tuple(slice(end - width, end) for end, width in zip(accumulate(widths), widths, strict=True))

    def of_node_EP(self) -> torch.Tensor:
        """1 where a node has a part, else 0."""
        found = torch.zeros(len(self.of_nodes), sum(level.count for level in self.levels))
        for node, parts in enumerate(self.of_nodes):
            found[node, list(parts)] = 1.0
        return found


class LowRankExperts(nn.Module):
    """The parts. For each linear layer of the FFN: ``<layer>_a`` (parts, r, in), ``<layer>_b`` (parts, out, r) and, if it has a
    bias, ``<layer>_bias`` (parts, out); for groups, ``group_`` comes before the name.

    W_s is the FFN that they change. It belongs to the block that contains both.
    """

    def __init__(self, dense_mlp: nn.Module, family: Family, upcycle: UpcycleConfig) -> None:
        """Allocate the parts; values come from a checkpoint."""
        super().__init__()
        self._base = (dense_mlp,)  # in a tuple, so that its parameters belong only to the block
        self._family, self._parts = family, Parts(upcycle)
        self.num_experts = upcycle.num_routed
        self.act_fn = getattr(dense_mlp, family.activation)
        self.dropout = output_dropout(dense_mlp, family)
        self.has_bias = getattr(dense_mlp, family.down).bias is not None
        self.has_fused_gate = family.gated and len(family.up) == 1
        for name in (*family.up, family.down):
            layer = getattr(dense_mlp, name)
            for level in self._parts.levels:
                self._add(f"{level.prefix}{name}_a", layer.weight, level.count, level.rank, layer.in_features)
                self._add(f"{level.prefix}{name}_b", layer.weight, level.count, layer.out_features, level.rank)
                if self.has_bias:
                    self._add(f"{level.prefix}{name}_bias", layer.weight, level.count, layer.out_features)
        columns, more = self._parts.columns(0), int(self.has_bias)
        self._nodes = Nodes(self._parts.of_nodes, self._parts.columns(more), columns)

    def forward(self, x_TD: torch.Tensor, expert_index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """sum_k weight_TK[:, k] * E_{expert_index_TK[:, k]}(x), shape T,D.

        Index 0 to R-1 is a routed expert, R + g group g if there are groups, and -1 is W_s itself.
        """
        y_TD = self._combined(self._into(x_TD), expert_index_TK, weight_TK).to(x_TD.dtype)
        return F.dropout(y_TD, self.dropout, self.training) if self.dropout else y_TD

    def outputs_RTD(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The output of every routed expert for every token, shape R,T,D."""
        into = self._into(x_TD)
        index_T1 = torch.zeros(len(x_TD), 1, dtype=torch.long, device=x_TD.device)
        weight_T1 = torch.ones(len(x_TD), 1, dtype=torch.promote_types(x_TD.dtype, torch.float32), device=x_TD.device)
        return torch.stack([
            self._combined(into, index_T1 + expert, weight_T1).to(x_TD.dtype) for expert in range(self.num_experts)])

    def _into(self, x_TD: torch.Tensor) -> list[Into]:
        """The parts of gate and up, or of up alone, that are the same for all experts."""
        found = []
        for name in self._family.up:
            shared_TO, out_CO = getattr(self._base[0], name)(x_TD), self._columns_out(name, self.has_bias)
            low_TC = torch.cat([self._low(x_TD, name, level) for level in self._parts.levels], dim=1)
            halves = 2 if self.has_fused_gate else 1
            found += [
                Into(shared_TF, low_TC.to(shared_TF.dtype), out_CF.to(shared_TF.dtype))
                for shared_TF, out_CF in zip(shared_TO.chunk(halves, -1), out_CO.chunk(halves, -1), strict=True)]
        return found

    def _low(self, x_TD: torch.Tensor, name: str, level: Level) -> torch.Tensor:
        """A x of the parts of a level, with a 1 for the bias of each part if there are biases."""
        a_PrI = getattr(self, f"{level.prefix}{name}_a") * level.scale
        low_TPr = F.linear(x_TD, a_PrI.flatten(0, 1)).unflatten(-1, (level.count, level.rank))
        return (F.pad(low_TPr, (0, 1), value=1.0) if self.has_bias else low_TPr).flatten(1)

    def _columns_out(self, name: str, with_bias: bool) -> torch.Tensor:
        """B of all parts, C,O: the rows of a part are consecutive, its bias last."""
        found = []
        for level in self._parts.levels:
            of_level = getattr(self, f"{level.prefix}{name}_b").transpose(1, 2)
            if with_bias:
                of_level = torch.cat([of_level, getattr(self, f"{level.prefix}{name}_bias")[:, None]], dim=1)
            found.append(of_level.flatten(0, 1))
        return torch.cat(found)

    def _combined(self, into: list[Into], index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """sum_k weight_k E_k(x), with one down projection."""
        name, levels = self._family.down, self._parts.levels
        down = getattr(self._base[0], name)
        in_CF = torch.cat([
            getattr(self, f"{level.prefix}{name}_a").flatten(0, 1) * level.scale for level in levels])
        index_TK = index_TK.remainder(len(self._nodes.parts))  # -1 is the last
        hidden_TF, low_TC = mixed_hidden(
            self.act_fn, self._nodes, into, in_CF.to(into[0].shared_TF.dtype), index_TK, weight_TK)
        y_TD = F.linear(hidden_TF, down.weight) + low_TC @ self._columns_out(name, False).to(low_TC.dtype)
        if not self.has_bias:
            return y_TD
        of_node_EP = self._parts.of_node_EP().to(weight_TK)
        part_weight_TP = (of_node_EP[index_TK] * weight_TK[..., None]).sum(1)
        bias_PD = torch.cat([getattr(self, f"{level.prefix}{name}_bias") for level in levels])
        return y_TD + weight_TK.sum(1, keepdim=True) * down.bias + part_weight_TP @ bias_PD.to(part_weight_TP.dtype)

    def _add(self, name: str, like: torch.Tensor, *shape: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(*shape, dtype=like.dtype, device=like.device)))


def output_dropout(dense_mlp: nn.Module, family: Family) -> float:
    """The probability with which the FFN drops an element of its output in training."""
    found = getattr(dense_mlp, family.dropout, 0.0) if family.dropout else 0.0
    return float(found.p if isinstance(found, nn.Dropout) else found)
