"""From a router's logits to a token's experts and their weights (XFT, arXiv 2404.15247, section 3.1).

Shape suffixes: T tokens, N columns of routed experts, K experts per token.
"""

import torch
import torch.nn.functional as F

from xft_core.recipe.sections import Normalization
from xft_core.recipe.sections.upcycle import STOCK


def routing_weights(
    logits_TN: torch.Tensor, num_experts_per_tok: int, normalization: Normalization = "xft", shared_expert: bool = True, *,
    temperature: float = 1.0, order_TN: torch.Tensor | None = None, routed_share_T1: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None, shared_weight_T1: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token, and their weights.

    With a shared expert, s = softmax(logits), T = the K-1 largest s, m = max(s), and
        w_0 = 1 - m                                                  the shared expert
        w_i = m * softmax_{j in T}(s_j / temperature)_i   "xft"      (deliberately a softmax of probabilities)
        w_i = m * s_i / sum_{j in T} s_j                  "renormalize"
        w_i = s_i                                         "none"     (does not sum to one: the scale mismatch)
        w_i = m * softmax_{j in T}(logits_j)_i            "granite" and "qwen2_moe"
    Without, w = softmax over the K largest logits (sparse upcycling, arXiv 2212.05055) and ``normalization`` plays no part.

    Args:
        logits_TN: the routed experts' logits, N - 1 columns with a shared expert, N without; any float dtype.
        num_experts_per_tok: K, the shared expert included.
        normalization: see above.
        shared_expert: whether expert 0 is always on.
        temperature: see above; 1 is the paper's.
        order_TN: values by which T is chosen, in place of the logits; ties are ordered by the logits.
        routed_share_T1: m, in place of max(s).
        shared_weight_T1: w_0, in place of 1 - m.
        top_p: T is the smallest set, in falling order, whose s sum to this, at least one expert and at most K; 1: all K.
            Slots that a token does not need have weight 0.

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
        raise ValueError("the router's logits contain NaN or infinity: the model has diverged or its weights are damaged")
    # A stable sort rather than topk: among equal logits, the lower index wins on every device.
    # The logits are sorted, not s: s may underflow to equal zeros where the logits still differ.
    falling_TN = torch.sort(logits_TN, dim=-1, descending=True, stable=True).indices
    max_T1 = probability_TN.gather(1, falling_TN[:, :1]) if routed_share_T1 is None else routed_share_T1
    if order_TN is not None:
        again_TN = torch.sort(order_TN.gather(1, falling_TN), dim=-1, descending=True, stable=True).indices
        falling_TN = falling_TN.gather(1, again_TN)
    index_TK = falling_TN[:, :num_routed_per_tok]
    chosen_TK = probability_TN.gather(1, index_TK)
    not_needed_TK = None if top_p is None else _not_needed(chosen_TK.detach(), top_p)
    if not shared_expert:
        return index_TK, F.softmax(_left_out(logits_TN.gather(1, index_TK), not_needed_TK), dim=-1)
    if normalization == "xft":
        scaled_TK = chosen_TK if temperature == 1 else chosen_TK / temperature
        weight_TK = max_T1 * F.softmax(_left_out(scaled_TK, not_needed_TK), dim=-1)
    elif normalization == "renormalize":
        chosen_TK = _left_out(chosen_TK, not_needed_TK, 0.0)
        weight_TK = max_T1 * chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)
    elif normalization == "none":
        weight_TK = _left_out(chosen_TK, not_needed_TK, 0.0)
    elif normalization in STOCK:
        weight_TK = max_T1 * F.softmax(_left_out(logits_TN.gather(1, index_TK), not_needed_TK), dim=-1)
    else:
        raise ValueError(f"normalization is {normalization!r}: choose xft, renormalize, none, granite or qwen2_moe")
    shared_T1 = torch.zeros_like(index_TK[:, :1])
    if shared_weight_T1 is None:
        shared_weight_T1 = 1 - max_T1
    return torch.cat([index_TK + 1, shared_T1], dim=1), torch.cat([weight_TK, shared_weight_T1], dim=1)


def _not_needed(chosen_TK: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Slots whose predecessors already sum to ``top_p``. None at 1, which sums could reach only by rounding."""
    ahead_TK = chosen_TK.cumsum(dim=1) - chosen_TK
    not_needed_TK = (ahead_TK >= top_p) & (top_p < 1)
    not_needed_TK[:, 0] = False
    return not_needed_TK


def _left_out(x_TK: torch.Tensor, where_TK: torch.Tensor | None, value: float = float("-inf")) -> torch.Tensor:
    return x_TK if where_TK is None else x_TK.masked_fill(where_TK, value)
