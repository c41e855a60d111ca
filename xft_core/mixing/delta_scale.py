"""The step back towards the base model (WiSE-FT, arXiv 2109.01903), as one more member of the mixture.

    W = W_base + gamma (W_mix - W_base) = sum_i gamma c_i W_i + (1 - gamma) W_base

so that the shares still sum to one, the sum is rounded once, and dL/dgamma comes from the projected gradient that all
coefficients share. gamma = 1 does not read the base and gives the mixture bit for bit; gamma = 0 does not read the experts and
gives the base bit for bit.
Outside the FFNs, where there is only one tuned tensor, W = gamma W_tuned + (1 - gamma) W_base. There dL/dgamma is
<dL/dW, W_tuned - W_base>.

Shape suffixes: L layers, G groups, N experts, M = N + 1 members.
"""

from collections.abc import Iterator

import torch

from xft_core.mixing.mixture import MixtureReader, weighted_sums


def scaled(weight: torch.Tensor, delta_scale_L: torch.Tensor) -> torch.Tensor:
    """Shares of the members, L,M or L,G,M, from those of the experts, L,N or L,G,N, and a gamma for each layer."""
    gamma = delta_scale_L.reshape(-1, *[1] * (weight.dim() - 1)).expand(*weight.shape[:-1], 1)
    return torch.cat([gamma * weight, 1 - gamma], dim=-1)


def scaled_tensor(mixture: MixtureReader, name: str, delta_scale: float) -> Iterator[tuple[slice, torch.Tensor]]:
    """A tensor outside the FFNs, a part at a time, as ``(rows, these rows)`` in its own dtype. ``name``: its dense name.

    Raises CheckpointError if the base model has no tensor of this name and shape.
    """
    tuned = mixture.reader.get(name)
    base = mixture.base_tensor(name, list(tuned.shape))
    share_2 = torch.tensor([delta_scale, 1 - delta_scale], dtype=torch.float64)
    for rows, sum_B in weighted_sums([tuned[None], base[None]], share_2, torch.float64, torch.device("cpu")):
        yield rows, sum_B.view(-1, *tuned.shape[1:]).to(tuned.dtype)


def is_scaled(tensor: torch.Tensor) -> bool:
    """Whether gamma applies to a tensor outside the FFNs: it applies to all floating-point tensors with dimensions."""
    return tensor.is_floating_point() and tensor.dim() > 0


def outside_gradient(mixture: MixtureReader, name: str, gradient: torch.Tensor) -> float:
    """<dL/dW, W_tuned - W_base> of one tensor outside the FFNs."""
    tuned = mixture.reader.get(name)
    difference = tuned.to(gradient.device, torch.float32) - mixture.base_tensor(name, list(tuned.shape)).to(
        gradient.device, torch.float32)
    return float((difference.double() * gradient.double()).sum())
