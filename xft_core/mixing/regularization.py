"""Penalties and dropout that keep learned coefficients near uniform, smooth over layers, and good without any one expert.

    L = L_obj + rho sum_l KL(c_l || c_l^0) + eta sum_l |alpha_l - alpha_(l-1)|^2          c^0: uniform mixing

For several groups in a layer, the mean counts, so that rho and eta mean the same for every granularity. With expert dropout, a
step leaves out one routed expert of each layer and scales the other shares up to a sum of one. rho = 0 and eta = 0 leave
learning unchanged. As rho grows, the shares become uniform, bit for bit. A step of Adam moves them however large rho is, so
learning finally returns to the start if its result has no lower objective, penalties included.

Shape suffixes: L layers, G groups, N experts, R routed.
"""

import torch

from xft_core.mixing.parameters import MixingParameters
from xft_core.recipe.sections import MergeConfig

LARGEST_SEED = 2**63 - 1


def penalty(parameters: MixingParameters, weight: torch.Tensor, uniform: torch.Tensor, merge: MergeConfig) -> torch.Tensor:
    """rho sum KL + eta sum |...|^2 for shares ``weight``, which have the form of ``uniform``. A number in fp64."""
    total = torch.zeros((), dtype=torch.float64)
    if merge.uniform_penalty:
        total = total + merge.uniform_penalty * _layers_sum(divergence_from(weight, uniform))
    if merge.smoothness:
        step = parameters.alpha().diff(dim=0)
        total = total + merge.smoothness * _layers_sum(step.square().sum(-1))
    return total


def is_penalized(merge: MergeConfig) -> bool:
    """Whether there is any penalty."""
    return bool(merge.uniform_penalty or merge.smoothness)


def divergence_from(weight: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """KL(c || c^0) in nats of every row of shares; a share of zero in either adds nothing."""
    counted = (weight > 0) & (uniform > 0)
    one = torch.ones((), dtype=weight.dtype)
    ratio = torch.where(counted, weight, one).log() - torch.where(counted, uniform, one).log()
    return (weight * ratio).sum(-1).clamp(min=0)  # rounding can make it negative


def without_one_expert(weight: torch.Tensor, first_routed: int, probability: float, seed: int, step: int) -> torch.Tensor:
    """With ``probability``, the shares without one routed expert of each layer, the others scaled up to a sum of one. Seed and
    step alone determine whether and which. With only one routed expert, the shares stay unchanged."""
    num_routed = weight.shape[-1] - first_routed
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % LARGEST_SEED)
    if num_routed < 2 or float(torch.rand((), generator=generator)) >= probability:
        return weight
    left_out_L = torch.randint(num_routed, (len(weight),), generator=generator) + first_routed
    kept_LN = torch.ones(len(weight), weight.shape[-1], dtype=weight.dtype)
    kept_LN[torch.arange(len(weight)), left_out_L] = 0
    kept = weight * (kept_LN if weight.dim() == 2 else kept_LN[:, None])
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=torch.finfo(weight.dtype).tiny), weight)


def _layers_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over layers of the mean over a layer's groups."""
    return values.sum() if values.dim() == 1 else values.mean(dim=1).sum()
