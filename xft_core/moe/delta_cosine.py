"""The similarity of the experts' weights: the cosine of their changes.

Shape suffixes: R routed experts, B elements.
"""

from collections.abc import Callable

import torch

from xft_core.moe.experts import MoeBlock, RoutedExperts

BLOCK_ELEMENTS = 2**22  # of all experts, processed at once

Start = Callable[[int, str], torch.Tensor]


@torch.no_grad()
def delta_cosine(blocks: list[MoeBlock], start: Start) -> float | None:
    """Cosine of Delta_i and Delta_j, mean over pairs of routed experts and over layers; Delta_i = W_i - W_0. Without a shared
    expert, Delta_i = W_i - W, where W is the experts' initial weight, which ``start`` gives by layer and name of the stacked
    tensor (relative to the experts' mean, the cosine would be -1 / (R - 1) whatever they learned).

    None if there are no pairs, or if experts have not moved.
    """
    found = []
    for layer, block in enumerate(blocks):
        if not isinstance(block.experts, RoutedExperts) or block.experts.num_experts < 2:
            continue
        gram_RR = _gram(block, layer, start)
        length_R = gram_RR.diagonal().sqrt()
        cosine_RR = gram_RR / (length_R[:, None] * length_R)
        above_RR = torch.ones_like(gram_RR, dtype=torch.bool).triu(1)
        if bool((length_R > 0).all()):
            found.append(float(cosine_RR[above_RR].mean()))
    return sum(found) / len(found) if found else None


def _gram(block: MoeBlock, layer: int, start: Start) -> torch.Tensor:
    """<Delta_i, Delta_j> over all weights of a layer's experts, fp64, R,R, on the CPU."""
    experts = block.experts
    gram_RR = torch.zeros(experts.num_experts, experts.num_experts, dtype=torch.float64)
    shared = None if block.shared_expert is None else dict(block.shared_expert.named_parameters())
    for name, sources in block.family.expert_sources(experts.has_bias).items():
        stack = getattr(experts, name)
        reference = start(layer, name) if shared is None else torch.cat([shared[source] for source in sources])
        of_shared, of_routed = block.router.upcycle.down_scales if name == "down_proj" else (1.0, 1.0)
        reference = reference.to(stack.device) * (of_routed / of_shared)  # Delta_i times of_routed, the same for all i
        size = max(1, BLOCK_ELEMENTS // max(1, stack[:, 0].numel()))
        for first in range(0, stack.shape[1], size):
            rows = slice(first, first + size)
            delta_RB = stack[:, rows].flatten(1).float() - reference[rows].flatten().float()
            gram_RR += (delta_RB @ delta_RB.T).double().cpu()
    return gram_RR
