"""The noisy top-k router with an always-on shared expert (XFT, arXiv 2404.15247, section 3.1), and its variants.

Shape suffixes: T tokens, D hidden size, R routed experts (N - 1 with a shared expert, else N), K experts per token.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from xft_core.moe.assignment import ForwardInputs, hash_order
from xft_core.moe.weights import routing_weights
from xft_core.recipe.sections import UpcycleConfig
from xft_core.recipe.sections.upcycle import ASSIGNED

NOISE_FLOOR = 0.01  # smallest standard deviation of the routing noise; the reference's value


@dataclass
class Routing:
    """The router's decisions for a batch of tokens, from which losses and metrics are computed.

    ``logits_TR`` are the router's logits, ``noisy_logits_TR`` those that decided (the same object without noise),
    ``noise_std_TR`` the noise's standard deviation or None. ``active_TK``: which slots of a token hold an expert; None for
    all; the others have weight 0. ``smooth_load``: whether the experts are those with the largest noisy logits, as the
    balance loss's estimate of the load assumes. ``dense_weight_TN``: the weights that all experts would have, the shared one
    first; None unless the router uses their gradient. ``overlap``: see moe/diversity.py.
    """

    logits_TR: torch.Tensor
    noisy_logits_TR: torch.Tensor
    noise_std_TR: torch.Tensor | None
    expert_index_TK: torch.Tensor
    weight_TK: torch.Tensor
    active_TK: torch.Tensor | None = None
    smooth_load: bool = True
    dense_weight_TN: torch.Tensor | None = None
    overlap: torch.Tensor | None = None


class Router(nn.Module):
    """r(x) = W_2 tanh(W_1 x), no biases; while training, noise randn * (softplus(W_noise x) + 0.01) on the logits.

    W_noise starts at zero (Shazeer et al., arXiv 1701.06538, eq. 4; the reference's router). With ``upcycle.router`` hashed,
    random or by_example the logits are 0, and experts are chosen by moe/assignment.py. With ``upcycle.shared_gate`` token,
    m = sigmoid(``gate``(x)). With the normalizations granite and qwen2_moe, r(x) = W_1 x; with qwen2_moe,
    w_0 = sigmoid(``gate``(x)), without a bias.

    ``top_p`` (with routing top_p): p and the summed error of its controller, see moe/top_p.py. ``balance_bias``: added to s
    to choose experts, if sft.balance bias was used. They are in fp64 and fp32 whatever the dtype of the weights, part of the
    model's state, and the same in every process.
    """

    top_p: torch.Tensor | None
    balance_bias: torch.Tensor | None

    def __init__(self, hidden_size: int, upcycle: UpcycleConfig) -> None:
        super().__init__()
        self.upcycle = upcycle
        self.inputs = ForwardInputs()
        self.dense_gradient = False
        num_routed = upcycle.num_routed
        self.noise: nn.Linear | None = None
        if upcycle.router not in ASSIGNED:
            self.hidden = nn.Linear(hidden_size, num_routed, bias=False)
            self.output = None if upcycle.is_stock else nn.Linear(num_routed, num_routed, bias=False)
            self.noise = nn.Linear(hidden_size, num_routed, bias=False) if upcycle.router_noise else None
            if upcycle.router == "frozen":
                self.requires_grad_(False)
        has_gate = upcycle.shared_gate == "token" and upcycle.shared_expert
        self.gate = nn.Linear(hidden_size, 1) if has_gate else None
        if upcycle.normalization == "qwen2_moe":
            self.gate = nn.Linear(hidden_size, 1, bias=False)
        self.register_buffer("top_p", None)
        self.register_buffer("balance_bias", None)

    def add_top_p(self) -> None:
        """Add p and its controller's state, which start as for a router whose s are equal."""
        start = first_top_p(self.upcycle)
        self.register_buffer("top_p", torch.tensor([start, 0.0], dtype=torch.float64, device=self.hidden.weight.device))

    def add_balance_bias(self) -> None:
        """Add the bias, which is 0, unless there is one already."""
        if self.balance_bias is None:
            self.register_buffer("balance_bias", torch.zeros(
                self.upcycle.num_routed, dtype=torch.float32, device=self.hidden.weight.device))

    def forward(self, x_TD: torch.Tensor) -> Routing:
        """Route tokens x_TD. Raises ValueError if the logits are NaN, or if a router that needs token ids has none."""
        upcycle = self.upcycle
        noise_std_TR, order_TR, num_experts_per_tok = None, None, upcycle.num_experts_per_tok
        if upcycle.router in ASSIGNED:
            noisy_logits_TR = logits_TR = torch.zeros(len(x_TD), upcycle.num_routed, device=x_TD.device)
            order_TR = self._assigned(len(x_TD), x_TD.device)
            if order_TR is None:
                num_experts_per_tok = upcycle.num_experts
        else:
            logits_TR, noisy_logits_TR, noise_std_TR = self.logits(x_TD)
            if self.balance_bias is not None:
                order_TR = F.softmax(noisy_logits_TR.detach(), dim=-1) + self.balance_bias
        share_T1 = None if self.gate is None else torch.sigmoid(self.gate(x_TD).float())
        options: dict[str, Any] = {"temperature": upcycle.routing_temperature, "routed_share_T1": share_T1}
        if upcycle.is_stock:
            routed_share_T1 = torch.full_like(logits_TR[:, :1], upcycle.down_scales[1])
            options |= {"routed_share_T1": routed_share_T1, "shared_weight_T1": share_T1}
        index_TK, weight_TK = routing_weights(
            noisy_logits_TR, num_experts_per_tok, upcycle.normalization, upcycle.shared_expert, **options,
            order_TN=order_TR, top_p=None if self.top_p is None else self.top_p[0])
        dense_weight_TN = None
        if self.dense_gradient and self.training and (logits_TR.requires_grad or self.gate is not None):
            everyone_TN, of_everyone_TN = routing_weights(
                noisy_logits_TR, upcycle.num_experts, upcycle.normalization, upcycle.shared_expert, **options)
            dense_weight_TN = torch.zeros_like(of_everyone_TN).scatter(1, everyone_TN, of_everyone_TN)
        return Routing(
            logits_TR, noisy_logits_TR, noise_std_TR, index_TK, weight_TK, None if self.top_p is None else weight_TK > 0,
            order_TR is None and self.top_p is None, dense_weight_TN)

    def logits(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The logits, those with noise, and the noise's standard deviation (None without noise)."""
        logits_TR = self.hidden(x_TD).float() if self.output is None else self.output(torch.tanh(self.hidden(x_TD))).float()
        if not self.training or self.noise is None:
            return logits_TR, logits_TR, None
        noise_std_TR = F.softplus(self.noise(x_TD).float()) + NOISE_FLOOR
        return logits_TR, logits_TR + torch.randn_like(logits_TR) * noise_std_TR, noise_std_TR

    def _assigned(self, num_tokens: int, device: torch.device) -> torch.Tensor | None:
        """The order in which tokens take the experts, T,R; None if all experts count equally."""
        kind = self.upcycle.router
        if kind != "hashed" and not self.training:
            return None
        if kind == "random":
            return torch.rand(num_tokens, self.upcycle.num_routed, device=device)
        key_T = self.inputs.key_T
        if key_T is None or len(key_T) != num_tokens:
            raise ValueError(
                f"the router {kind} needs the ids of the tokens, but the model was called without them: give input_ids")
        return hash_order(key_T, self.upcycle.num_routed)


def first_top_p(upcycle: UpcycleConfig) -> float:
    """The initial p: the share of the routed experts that should be active."""
    assert upcycle.target_active is not None
    return (upcycle.target_active - int(upcycle.shared_expert)) / upcycle.num_routed


def first_gate_bias(upcycle: UpcycleConfig) -> float:
    """The initial b, logit(m_0)."""
    return math.log(upcycle.shared_gate_start / (1 - upcycle.shared_gate_start))
