"""Routing in two levels: the instruction chooses groups of experts, and each token chooses experts within them.

XFT's rule applies at both levels. The group's own expert E_g is the shared expert of its group:

    y = (1 - m) E_0 + m sum_g u_g [(1 - q_g) E_g + q_g sum_{i in T_g} p_gi E_gi]

    s = softmax(v mean(prompt)),  m = max(s),  u = s over the chosen groups, scaled to sum to one        for each prompt
    q_g = max(s_g),  s_g = softmax(logits of the group's experts),  p_g as ``normalization`` says         for each token

All shares of a token sum to one. With one group, m = u = 1, and this is flat routing of low-rank experts whose shared weights
are W_s + B_1 A_1. Without a shared expert, m = q = 1, and p is the softmax over the chosen experts' logits.

Shape suffixes: T tokens, D hidden size, P prompts, G groups, R routed experts, I experts of a group, K slots of a token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from xft_core.moe.prompts import AsksPrompts
from xft_core.moe.router import Router, Routing
from xft_core.moe.weights import routing_weights
from xft_core.recipe.sections import UpcycleConfig


@dataclass
class HierarchicalRouting(Routing):
    """A Routing of paths: the weight of expert i of group g is m u_g p_gi, and the logits are log s_g s_gi. Of a path's
    weight, the expert gets the share ``leaf_share_TK`` (q_g) and its group's own expert the rest; the shared expert all."""

    leaf_share_TK: torch.Tensor | None = None


class HierarchicalRouter(Router, AsksPrompts):
    """A Router that chooses within groups, with ``group``, v above. Only the experts' logits get noise, so that an
    instruction's choice is the same for all its tokens."""

    def __init__(self, hidden_size: int, upcycle: UpcycleConfig) -> None:
        super().__init__(hidden_size, upcycle)
        assert upcycle.groups is not None
        self.groups = upcycle.groups
        self.group = nn.Linear(hidden_size, upcycle.groups, bias=False)

    def forward(self, x_TD: torch.Tensor) -> HierarchicalRouting:
        """Route tokens x_TD. Raises ValueError if the logits are NaN, PromptsUnknown if no prompts were given."""
        logits_TR, noisy_logits_TR, _ = self.logits(x_TD)
        log_group_TG, chosen_TG, chosen_weight_TG, routed_T1 = self._groups(x_TD)
        upcycle, size = self.upcycle, logits_TR.shape[1] // self.groups
        num_chosen = chosen_TG.shape[1]
        per_group_XI = noisy_logits_TR.unflatten(1, (self.groups, size)).gather(
            1, chosen_TG[..., None].expand(-1, -1, size)).flatten(0, 1)
        index_XK, weight_XK = routing_weights(
            per_group_XI, upcycle.num_experts_per_tok, upcycle.normalization, upcycle.shared_expert,
            temperature=upcycle.routing_temperature)
        if upcycle.shared_expert:
            leaf_share_X1 = 1 - weight_XK[:, -1:]
            index_XK, weight_XK = index_XK[:, :-1] - 1, weight_XK[:, :-1] / leaf_share_X1
        else:
            leaf_share_X1 = torch.ones_like(weight_XK[:, :1])
        index_TK = (index_XK.unflatten(0, (-1, num_chosen)) + chosen_TG[..., None] * size).flatten(1)
        weight_TK = (weight_XK.unflatten(0, (-1, num_chosen)) * chosen_weight_TG[..., None]).flatten(1) * routed_T1
        leaf_share_TK = leaf_share_X1.expand_as(weight_XK).unflatten(0, (-1, num_chosen)).flatten(1)
        if upcycle.shared_expert:
            index_TK = torch.cat([index_TK + 1, torch.zeros_like(index_TK[:, :1])], dim=1)
            weight_TK = torch.cat([weight_TK, 1 - routed_T1], dim=1)
            leaf_share_TK = torch.cat([leaf_share_TK, torch.ones_like(routed_T1)], dim=1)
        log_leaf_TGI = F.log_softmax(logits_TR.unflatten(1, (self.groups, size)), dim=-1)
        joint_TR = (log_group_TG[..., None] + log_leaf_TGI).flatten(1)
        return HierarchicalRouting(
            joint_TR, joint_TR, None, index_TK, weight_TK, smooth_load=False, leaf_share_TK=leaf_share_TK)

    def _groups(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """log s, the chosen groups, u and m of each token's prompt."""
        mean_PD, prompt_T = self.prompt_means(x_TD)
        log_PG = F.log_softmax(self.group(mean_PD.to(x_TD.dtype)).float(), dim=-1)
        chosen_PG = torch.sort(log_PG, dim=-1, descending=True, stable=True).indices[:, :self.upcycle.groups_per_tok]
        weight_PG = F.softmax(log_PG.gather(1, chosen_PG), dim=-1)
        routed_P1 = log_PG.exp().amax(-1, keepdim=True) if self.upcycle.shared_expert else torch.ones_like(log_PG[:, :1])
        return log_PG[prompt_T], chosen_PG[prompt_T], weight_PG[prompt_T], routed_P1[prompt_T]


def nodes_of(
    routing: Routing, path_weight_TK: torch.Tensor, upcycle: UpcycleConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots of low-rank experts and their weights: see LowRankExperts.forward for the numbering. ``path_weight_TK``: the
    routing's weights, with any gradient."""
    index_TK = routing.expert_index_TK - int(upcycle.shared_expert)  # the shared expert's becomes -1
    if not isinstance(routing, HierarchicalRouting) or routing.leaf_share_TK is None or not upcycle.shared_expert:
        return index_TK, path_weight_TK
    assert upcycle.groups is not None
    chosen = upcycle.groups_per_tok
    routed, size = upcycle.num_routed, upcycle.num_routed // upcycle.groups
    group_TG = index_TK[:, :-1].unflatten(1, (chosen, -1))[..., 0] // size
    rest_TK = path_weight_TK * (1 - routing.leaf_share_TK)
    rest_TG = rest_TK[:, :-1].unflatten(1, (chosen, -1)).sum(-1)
    return torch.cat([index_TK, routed + group_TG], dim=1), torch.cat(
        [path_weight_TK * routing.leaf_share_TK, rest_TG], dim=1)
