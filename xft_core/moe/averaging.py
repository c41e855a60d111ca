"""Expert weight averaging (EWA, arXiv 2308.06093): while training, experts are pulled together after each optimizer step.

    W_i <- (1 - b_t) W_i + b_t / (R - 1) sum_{j != i} W_j  =  W_i + b_t R / (R - 1) (mean_j W_j - W_i)      b_t = b t / T

over the R routed experts. The mean of the experts does not change. Merging them by their mean is then almost lossless, and that
mean has followed each expert throughout its training.
"""

import torch
from torch.distributed.tensor import DTensor

from xft_core.moe.experts import RoutedExperts


def averaging_share(largest: float, step: int, total_steps: int) -> float:
    """b_t after ``step`` (from 1) of ``total_steps``: rises linearly to ``largest``."""
    return largest * step / total_steps


@torch.no_grad()
def pull_together(experts: RoutedExperts, share: float) -> None:
    """Move every expert by ``share`` towards the mean of the others, in fp32 at least, rounded once to the weights' dtype.

    If there are several processes, all must call it, because they share the experts. A share of 1 - 1/R moves all experts to
    their mean.
    """
    assert experts.num_experts > 1
    scale = share * experts.num_experts / (experts.num_experts - 1)
    for parameter in experts.parameters(recurse=False):
        wide = torch.promote_types(parameter.dtype, torch.float32)
        total = parameter.detach().sum(0, keepdim=True, dtype=wide)
        if isinstance(total, DTensor):
            total = total.full_tensor()
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        own.copy_(own.to(wide).lerp(total / experts.num_experts, scale))
