"""The noisy top-k router with an always-on shared expert (XFT, arXiv 2404.15247, section 3.1).

Shape suffixes: T tokens, D hidden size, R routed experts (N - 1 with a shared expert, else N), K experts per token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from xft_core.recipe.sections import Normalization, UpcycleConfig

NOISE_FLOOR = 0.01  # smallest standard deviation of the routing noise; the reference's value


def routing_weights(
    logits_TN: torch.Tensor, num_experts_per_tok: int, normalization: Normalization = "xft", shared_expert: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which experts a token goes to, and with what weight.

    With a shared expert, s = softmax(logits), T = the K-1 largest s, and
        w_0 = 1 - max(s)                                             the shared expert
        w_i = max(s) * softmax_{j in T}(s_j)_i        "xft"          (a softmax of probabilities, on purpose)
        w_i = max(s) * s_i / sum_{j in T} s_j         "renormalize"
        w_i = s_i                                     "none"         (does not sum to one: the scale mismatch)
    Without, w = softmax over the K largest logits (sparse upcycling, arXiv 2212.05055) and ``normalization`` plays no part.

    Args:
        logits_TN: the routed experts' logits, N - 1 columns with a shared expert, N without; any float dtype.
        num_experts_per_tok: K, the shared expert included.
        normalization: see above.
        shared_expert: whether expert 0 is always on.

    Returns:
        ``(expert_index_TK, weight_TK)``: int64 and fp32, in falling order of weight among the routed experts, ties by the
        lower index. With a shared expert the routed ones are 1..N-1 and the shared one, 0, is the last column.

    Raises:
        ValueError: logits that are NaN or infinite upwards, a wrong shape, or a K that does not fit.
    """
    if logits_TN.dim() != 2:
        raise ValueError(f"logits_TN must have 2 dimensions (tokens, experts), not shape {tuple(logits_TN.shape)}")
    num_routed_per_tok = num_experts_per_tok - int(shared_expert)
    if not 1 <= num_routed_per_tok <= logits_TN.shape[1]:
        raise ValueError(
            f"num_experts_per_tok is {num_experts_per_tok} with {logits_TN.shape[1]} routed experts"
            f"{' and a shared one' if shared_expert else ''}: choose {1 + int(shared_expert)} to "
            f"{logits_TN.shape[1] + int(shared_expert)}")
    logits_TN = logits_TN.float()
    probability_TN = F.softmax(logits_TN, dim=-1)
    if bool(torch.isnan(probability_TN).any()):
        raise ValueError("the router's logits hold NaN or infinity: the model has diverged or its weights are damaged")
    # A stable sort rather than topk: among equal logits the lower index wins, on every device.
    # The logits are sorted, not s: s may underflow to equal zeros where the logits still differ.
    index_TK = torch.sort(logits_TN, dim=-1, descending=True, stable=True).indices[:, :num_routed_per_tok]
    if not shared_expert:
        return index_TK, F.softmax(logits_TN.gather(1, index_TK), dim=-1)
    chosen_TK = probability_TN.gather(1, index_TK)
    max_T1 = chosen_TK[:, :1]
    if normalization == "xft":
        weight_TK = max_T1 * F.softmax(chosen_TK, dim=-1)
    elif normalization == "renormalize":
        weight_TK = max_T1 * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)
    elif normalization == "none":
        weight_TK = chosen_TK
    else:
        raise ValueError(f"normalization is {normalization!r}: choose xft, renormalize or none")
    shared_T1 = torch.zeros_like(index_TK[:, :1])
    return torch.cat([index_TK + 1, shared_T1], dim=1), torch.cat([weight_TK, 1 - max_T1], dim=1)


@dataclass
class Routing:
    """What the router decided for a batch of tokens; the losses and metrics are made of it.

    ``logits_TR`` are the router's own, ``noisy_logits_TR`` those it decided by (the same object without noise),
    ``noise_std_TR`` the noise's standard deviation or None.
    """

    logits_TR: torch.Tensor
    noisy_logits_TR: torch.Tensor
    noise_std_TR: torch.Tensor | None
    expert_index_TK: torch.Tensor
    weight_TK: torch.Tensor


class Router(nn.Module):
    """r(x) = W_2 tanh(W_1 x), no biases; while training, noise randn * (softplus(W_noise x) + 0.01) on the logits.

    W_noise starts at zero (Shazeer et al., arXiv 1701.06538, eq. 4; the reference's router).
    """

    def __init__(self, hidden_size: int, upcycle: UpcycleConfig) -> None:
        super().__init__()
        self.upcycle = upcycle
        num_routed = upcycle.num_routed_experts
        self.hidden = nn.Linear(hidden_size, num_routed, bias=False)
        self.output = nn.Linear(num_routed, num_routed, bias=False)
        self.noise = nn.Linear(hidden_size, num_routed, bias=False) if upcycle.router_noise else None

    def forward(self, x_TD: torch.Tensor) -> Routing:
        """Route tokens x_TD. Raises ValueError when the logits are NaN."""
        logits_TR, noisy_logits_TR, noise_std_TR = self.logits(x_TD)
        expert_index_TK, weight_TK = routing_weights(
            noisy_logits_TR, self.upcycle.num_experts_per_tok, self.upcycle.normalization, self.upcycle.shared_expert)
        return Routing(logits_TR, noisy_logits_TR, noise_std_TR, expert_index_TK, weight_TK)

    def logits(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The logits, those with noise, and the noise's standard deviation (None without noise)."""
        logits_TR = self.output(torch.tanh(self.hidden(x_TD))).float()
        if not self.training or self.noise is None:
            return logits_TR, logits_TR, None
        noise_std_TR = F.softplus(self.noise(x_TD).float()) + NOISE_FLOOR
        return logits_TR, logits_TR + torch.randn_like(logits_TR) * noise_std_TR, noise_std_TR
