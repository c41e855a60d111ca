"""The balance loss, the bias that can replace it, and the routers' metrics, from their decisions. Padding never counts.

Shape suffixes: L layers, T tokens, R routed experts, K experts per token (the shared one, if any, is the last column).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from xft_core.moe.router import Router, Routing
from xft_core.runtime.group import summed

BIAS_STEP = 1e-3  # of arXiv 2408.15664


def usage(routings: list[Routing], token_mask_T: torch.Tensor, shared_expert: bool) -> torch.Tensor:
    """Importance and load of every routed expert, L,2,R: sums over the tokens that count.

    Args:
        routings: one per layer, of the same tokens.
        token_mask_T: True where a token counts; padding is False.
        shared_expert: whether the last column of the routing is the shared expert, which is left out.
    """
    return torch.stack([torch.stack(_importance_and_load(item, token_mask_T, shared_expert)) for item in routings])


def unevenness(usage_L2R: torch.Tensor, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """The balance loss: CV^2(importance) + CV^2(load) of the routed experts (arXiv 1701.06538, eq. 6 to 11), over the layers.

    Args:
        usage_L2R: sums over any number of tokens, whose scale plays no part.
        reduction: over layers; the reference sums, so that its weight grows with depth.
    """
    losses = [_squared_variation(importance_R) + _squared_variation(load_R) for importance_R, load_R in usage_L2R]
    total = torch.stack(losses).sum()
    return total if reduction == "sum" else total / len(losses)


def counts(routings: list[Routing], token_mask_T: torch.Tensor, shared_expert: bool) -> torch.Tensor:
    """Number of tokens routed to each routed expert, int64, L,R."""
    return torch.stack([_counts(item, token_mask_T, shared_expert) for item in routings])


@torch.no_grad()
def move_bias(routers: list[Router], counts_LR: torch.Tensor) -> None:
    """b_i += 0.001 sign(mean load - load_i), from a step's ``counts_LR`` of all processes (arXiv 2408.15664)."""
    for router, counts_R in zip(routers, counts_LR.double(), strict=True):
        assert router.balance_bias is not None
        router.balance_bias += BIAS_STEP * torch.sign(counts_R.mean() - counts_R).to(router.balance_bias)


def _importance_and_load(
    routing: Routing, token_mask_T: torch.Tensor, shared_expert: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_routed = routing.logits_TR.shape[1]
    index_TK, weight_TK = _routed(routing, token_mask_T, shared_expert)
    importance_R = torch.zeros(num_routed, device=weight_TK.device).index_add(0, index_TK.reshape(-1), weight_TK.reshape(-1))
    num_chosen = index_TK.shape[1]
    if routing.noise_std_TR is None or num_chosen == num_routed or not routing.smooth_load:
        return importance_R, _counts(routing, token_mask_T, shared_expert).float()
    chance_TR = chance_of_being_chosen(
        routing.logits_TR[token_mask_T], routing.noisy_logits_TR[token_mask_T], routing.noise_std_TR[token_mask_T],
        num_chosen)
    return importance_R, chance_TR.sum(0)


def chance_of_being_chosen(
    logits_TR: torch.Tensor, noisy_logits_TR: torch.Tensor, noise_std_TR: torch.Tensor, num_chosen: int,
) -> torch.Tensor:
    """P(expert is among the ``num_chosen`` largest if its own noise were drawn again), the smooth load estimate.

    A chosen expert must stay above the best of the others; an expert that is not chosen must pass the worst chosen one. The
    *noisy* logits decide which side it is on (the reference compares only the noise, which is a bug).
    Needs num_chosen < R.
    """
    top_T = torch.sort(noisy_logits_TR, dim=-1, descending=True).values
    worst_in_T1, best_out_T1 = top_T[:, num_chosen - 1:num_chosen], top_T[:, num_chosen:num_chosen + 1]
    threshold_TR = torch.where(noisy_logits_TR > best_out_T1, best_out_T1, worst_in_T1)
    return 0.5 * (1 + torch.erf((logits_TR - threshold_TR) / noise_std_TR / math.sqrt(2)))


@dataclass(frozen=True)
class LayerStatistics:
    """One layer's routing, averaged over tokens. ``load``: share of the routed slots per routed expert (sums to 1);
    ``entropy``: of s, in nats; ``mean_weights``: per expert, the shared one first if there is one;
    ``shared_weight_spread``: standard deviation of the shared expert's weight over tokens; ``mean_active``: experts per
    token, the shared one included."""

    load: list[float]
    entropy: float
    mean_shared_weight: float | None
    mean_weights: list[float]
    shared_weight_spread: float | None
    mean_active: float


class RouterStatistics:
    """Running means of the routing of every layer over batches of tokens."""

    def __init__(self, num_layers: int, num_experts: int, shared_expert: bool) -> None:
        self.shared_expert = shared_expert
        self.tokens = 0
        self._load = torch.zeros(num_layers, num_experts - int(shared_expert), dtype=torch.float64)
        self._weights = torch.zeros(num_layers, num_experts, dtype=torch.float64)
        self._entropy = torch.zeros(num_layers, dtype=torch.float64)
        self._squares = torch.zeros(num_layers, dtype=torch.float64)  # of the shared expert's weight

    @torch.no_grad()
    def add(self, routings: list[Routing], token_mask_T: torch.Tensor) -> None:
        """Count one batch: one routing per layer, of the same tokens."""
        self.tokens += int(token_mask_T.sum())
        for layer, routing in enumerate(routings):
            self._load[layer] += _counts(routing, token_mask_T, self.shared_expert).cpu()
            if self.shared_expert:
                self._squares[layer] += routing.weight_TK[token_mask_T, -1].double().square().sum().cpu()
            self._weights[layer].index_add_(
                0, routing.expert_index_TK[token_mask_T].reshape(-1).cpu(),
                routing.weight_TK[token_mask_T].reshape(-1).double().cpu())
            log_TR = torch.log_softmax(routing.logits_TR[token_mask_T], dim=-1)
            self._entropy[layer] += -(log_TR.exp() * log_TR).sum().double().cpu()

    def sum_over_processes(self) -> None:
        """Add up the counts of all processes. All must call it, once."""
        self.tokens = int(summed(torch.tensor(self.tokens)))
        self._load, self._weights, self._entropy, self._squares = map(
            summed, (self._load, self._weights, self._entropy, self._squares))

    def layers(self) -> list[LayerStatistics]:
        """The means so far, layer by layer. Needs at least one token."""
        assert self.tokens, "no tokens were counted"
        return [
            LayerStatistics(
                load=(self._load[layer] / self._load[layer].sum()).tolist(),
                entropy=float(self._entropy[layer]) / self.tokens,
                mean_shared_weight=float(self._weights[layer, 0]) / self.tokens if self.shared_expert else None,
                mean_weights=(self._weights[layer] / self.tokens).tolist(),
                shared_weight_spread=self._spread(layer) if self.shared_expert else None,
                mean_active=float(self._load[layer].sum()) / self.tokens + int(self.shared_expert))
            for layer in range(len(self._load))]

    def _spread(self, layer: int) -> float:
        mean = self._weights[layer, 0] / self.tokens
        return math.sqrt(max(0.0, float(self._squares[layer] / self.tokens - mean.square())))

    def summary(self) -> dict[str, float]:
        """Means over layers for the training curve: entropy, mean shared weight, load per routed expert, and the smallest
        and largest load in any layer."""
        layers = self.layers()
        found = {
            "router_entropy": sum(layer.entropy for layer in layers) / len(layers),
            "expert_load_min": min(min(layer.load) for layer in layers),
            "expert_load_max": max(max(layer.load) for layer in layers)}
        for expert in range(self._load.shape[1]):
            found[f"expert_load/{expert + int(self.shared_expert)}"] = sum(layer.load[expert] for layer in layers) / len(layers)
        if self.shared_expert:
            found["mean_shared_weight"] = sum(layer.mean_shared_weight or 0.0 for layer in layers) / len(layers)
        return found


def _routed(routing: Routing, token_mask_T: torch.Tensor, shared_expert: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The routed experts' indices (from 0) and weights of the tokens that count."""
    index_TK, weight_TK = routing.expert_index_TK[token_mask_T], routing.weight_TK[token_mask_T]
    return (index_TK[:, :-1] - 1, weight_TK[:, :-1]) if shared_expert else (index_TK, weight_TK)


def _counts(routing: Routing, token_mask_T: torch.Tensor, shared_expert: bool) -> torch.Tensor:
    """Number of counted tokens routed to each routed expert."""
    index_TK, _ = _routed(routing, token_mask_T, shared_expert)
    chosen = index_TK.reshape(-1)
    if routing.active_TK is not None:
        active_TK = routing.active_TK[token_mask_T][:, :index_TK.shape[1]]
        chosen = chosen[active_TK.reshape(-1)]
    return torch.bincount(chosen, minlength=routing.logits_TR.shape[1])


def _squared_variation(x_R: torch.Tensor) -> torch.Tensor:
    """(standard deviation / mean)^2, unbiased as in the reference; zero for a single expert."""
    if x_R.numel() < 2:
        return x_R.sum() * 0.0
    return x_R.var() / (x_R.mean() ** 2 + 1e-10)
