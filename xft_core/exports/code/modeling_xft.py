"""A Mixture-of-Experts made by XFT (arXiv 2404.15247), for transformers and for programs that run transformers models.

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

The XFT pipeline writes this file next to the weights; it needs only torch and transformers. Everything except the feed-forward
networks is the dense family's own code. The routing is in config.json, under ``xft``; it counts routed experts only.
vLLM and SGLang replace ``experts`` with their own kernels: it holds only 3-D parameters, and is called with
``hidden_states, top_k_index, top_k_weights``.

Shape suffixes: T tokens, D hidden size, F FFN size, R routed experts, K routed experts of a token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig as DenseConfig
from transformers import LlamaForCausalLM as DenseForCausalLM
from transformers import LlamaModel as DenseModel
from transformers.activations import ACT2FN


class XftConfig(DenseConfig):
    """The dense family's configuration, with the routing."""

    model_type = "xft_moe_exported"


class XftExperts(nn.Module):
    """The routed experts' weights: ``gate_up_proj`` R,2F,D and ``down_proj`` R,D,F."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        hidden_size, ffn_size = config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * ffn_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden_size, ffn_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """sum_k top_k_weights[:, k] E_{top_k_index[:, k]}(x), shape T,D."""
        total_TD = torch.zeros_like(hidden_states, dtype=torch.promote_types(hidden_states.dtype, top_k_weights.dtype))
        for expert in range(self.num_experts):
            token, place = torch.where(top_k_index == expert)
            gate, up = F.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            y = F.linear(self.act_fn(gate) * up, self.down_proj[expert])
            total_TD.index_add_(0, token, (y * top_k_weights[token, place, None]).to(total_TD.dtype))
        return total_TD.to(hidden_states.dtype)


class XftRouter(nn.Module):
    """Selects the routed experts of each token, their weights, and the weight of the shared expert.

    With s = softmax(logits), T the K largest s and m = max(s), or sigmoid(gate(x)) with a gate:
        w_0 = 1 - m                                  the shared expert
        w_i = m softmax_T(s / temperature)_i         normalization xft
        w_i = m s_i / sum_T s                        renormalize
        w_i = s_i                                    none
    Without a shared expert, w is the softmax over the K largest logits. ``top_p``: T is the smallest set with a sum of s of at
    least top_p, with at most K experts; ``balance_bias``: added to s to choose T.
    """

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        xft, num_routed = config.xft, config.num_experts
        self.top_k, self.num_routed = config.num_experts_per_tok, num_routed
        self.normalization, self.temperature = xft["normalization"], xft["temperature"]
        self.has_shared = xft["shared_expert"]
        self.hidden = nn.Linear(config.hidden_size, num_routed, bias=False) if xft["has_logits"] else None
        self.output = nn.Linear(num_routed, num_routed, bias=False) if xft["has_logits"] else None
        self.gate = nn.Linear(config.hidden_size, 1) if xft["has_gate"] else None
        self.top_p = xft["top_p"][layer] if xft["top_p"] else None
        self.balance_bias = xft["balance_bias"][layer] if xft["balance_bias"] else None

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """``(top_k_index, top_k_weights, shared_weight)``; int64 T,K, fp32 T,K and fp32 T,1 (None without a shared expert)."""
        if self.hidden is None or self.output is None:
            logits_TR = hidden_states.new_zeros(len(hidden_states), self.num_routed, dtype=torch.float32)
        else:
            logits_TR = self.output(torch.tanh(self.hidden(hidden_states))).float()
        s_TR = F.softmax(logits_TR, dim=-1)
        # Sort the logits, not s, which may underflow; of equal logits the lower index comes first.
        falling_TR = torch.sort(logits_TR, dim=-1, descending=True, stable=True).indices
        m_T1 = s_TR.gather(1, falling_TR[:, :1]) if self.gate is None else torch.sigmoid(self.gate(hidden_states).float())
        if self.balance_bias is not None:
            biased_TR = s_TR + torch.tensor(self.balance_bias, dtype=torch.float32, device=s_TR.device)
            again_TR = torch.sort(biased_TR.gather(1, falling_TR), dim=-1, descending=True, stable=True).indices
            falling_TR = falling_TR.gather(1, again_TR)
        index_TK = falling_TR[:, :self.top_k]
        s_TK = s_TR.gather(1, index_TK)
        left_out_TK = torch.zeros_like(s_TK, dtype=torch.bool)
        if self.top_p is not None and self.top_p < 1:
            left_out_TK = (s_TK.cumsum(dim=1) - s_TK) >= self.top_p
            left_out_TK[:, 0] = False
        if not self.has_shared:
            logits_TK = logits_TR.gather(1, index_TK).masked_fill(left_out_TK, float("-inf"))
            return index_TK, F.softmax(logits_TK, dim=-1), None
        if self.normalization == "xft":
            weight_TK = m_T1 * F.softmax((s_TK / self.temperature).masked_fill(left_out_TK, float("-inf")), dim=-1)
        else:
            weight_TK = s_TK.masked_fill(left_out_TK, 0.0)
            if self.normalization == "renormalize":
                weight_TK = m_T1 * weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        return index_TK, weight_TK, 1 - m_T1


class XftBlock(nn.Module):
    """y = w_0 E_0(x) + sum_i w_i E_i(x). The shared expert E_0 is the family's own FFN."""

    def __init__(self, config: Any, dense_mlp: nn.Module, layer: int) -> None:
        super().__init__()
        self.router = XftRouter(config, layer)
        self.experts = XftExperts(config)
        self.shared_expert = dense_mlp if config.xft["shared_expert"] else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The mixture's output, of the input's shape and dtype."""
        x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        index_TK, weight_TK, shared_weight_T1 = self.router(x_TD)
        y_TD = self.experts(x_TD, index_TK, weight_TK)
        if self.shared_expert is not None:
            y_TD = (y_TD + self.shared_expert(x_TD) * shared_weight_T1).to(x_TD.dtype)
        return y_TD.reshape(hidden_states.shape)


class XftModel(DenseModel):
    """The dense family's model with mixtures for FFNs."""

    config_class = XftConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.layers):
            layer.mlp = XftBlock(config, layer.mlp, number)
        self.post_init()


class XftForCausalLM(DenseForCausalLM):
    """The same model with a language modelling head."""

    config_class = XftConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = XftModel(config)
        self.post_init()
