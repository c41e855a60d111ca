"""Operators on deltas Delta_i = W_i - W_base of one tensor: each gives the tensor that is added to W_base.

Shape suffixes: N experts, X elements of a tensor (in its own shape, rows first). Shares weight_N sum to one. Operators
work on one tensor at a time: where TIES takes the largest elements of a model, this takes the largest of a tensor.
"""

import torch


def task_arithmetic(delta_NX: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """sum_i c_i Delta_i (arXiv 2212.04089, with shares that sum to one): with scale 1, the mean of the experts."""
    return torch.tensordot(weight_N.to(delta_NX), delta_NX, 1)


def ties(delta_NX: torch.Tensor, weight_N: torch.Tensor, density: float) -> torch.Tensor:
    """Trim, elect signs, merge (arXiv 2306.01708): only the ``density`` largest elements of each delta are kept, followed by
    ``elected_mean``. With density 1 and deltas of one sign this is ``task_arithmetic``."""
    flat_NE = delta_NX.flatten(1)
    kept = max(1, round(density * flat_NE.shape[1]))
    smallest_N1 = flat_NE.abs().kthvalue(flat_NE.shape[1] - kept + 1, dim=1, keepdim=True).values
    trimmed_NE = torch.where(flat_NE.abs() >= smallest_N1, flat_NE, 0)
    return elected_mean(trimmed_NE.view_as(delta_NX), weight_N)


def elected_mean(delta_NX: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """sum_{i in A} c_i Delta_i / sum_{i in A} c_i for every element, where A are the experts whose delta has the sign of
    sum_i c_i Delta_i; 0 if there are none."""
    weight_N1 = weight_N.to(delta_NX).view(-1, *[1] * (delta_NX.dim() - 1))
    sign_X = torch.tensordot(weight_N.to(delta_NX), delta_NX, 1).sign()
    agrees_NX = (delta_NX.sign() == sign_X) & (delta_NX != 0)
    total_X = (weight_N1 * agrees_NX).sum(0)
    mean_X = (weight_N1 * delta_NX * agrees_NX).sum(0) / torch.where(total_X > 0, total_X, 1)
    return mean_X


def dare(delta_NX: torch.Tensor, weight_N: torch.Tensor, density: float, draw_NX: torch.Tensor) -> torch.Tensor:
    """Drop and rescale (arXiv 2311.03099), then ``task_arithmetic``: an element is kept if its draw, uniform on [0, 1), is
    below ``density``, and is divided by ``density``."""
    return task_arithmetic(_drop(delta_NX, torch.tensor(density, dtype=delta_NX.dtype), draw_NX), weight_N)


def della(
    delta_NX: torch.Tensor, weight_N: torch.Tensor, density: float, spread: float, draw_NX: torch.Tensor,
) -> torch.Tensor:
    """DELLA (arXiv 2406.11617): like DARE, but an element is kept with a probability that rises evenly with its rank by size in
    its row, from density - spread / 2 to density + spread / 2; then ``elected_mean``."""
    size = delta_NX.shape[-1]
    rank_NX = delta_NX.abs().argsort(dim=-1, stable=True).argsort(dim=-1)  # 0: the smallest of its row
    step = rank_NX.to(delta_NX.dtype) / max(1, size - 1) if size > 1 else torch.full_like(delta_NX, 0.5)
    return elected_mean(_drop(delta_NX, density + spread * (step - 0.5), draw_NX), weight_N)


def model_stock(delta_NX: torch.Tensor) -> torch.Tensor:
    """t times the mean of the deltas, t = N cos / (1 + (N - 1) cos), cos: the mean cosine of two deltas, at least 0
    (arXiv 2403.19522, with the base model as anchor). Equal experts give t = 1, unrelated ones t = 0."""
    num_experts = len(delta_NX)
    flat_NE = delta_NX.flatten(1)
    norm_N = flat_NE.norm(dim=1)
    unit_NE = flat_NE / torch.where(norm_N > 0, norm_N, 1)[:, None]
    cosine_NN = unit_NE @ unit_NE.t()
    pairs = num_experts * (num_experts - 1)
    cosine = float((cosine_NN.sum() - cosine_NN.diagonal().sum()) / pairs) if pairs else 1.0
    cosine = min(1.0, max(0.0, cosine))
    return delta_NX.mean(0) * (num_experts * cosine / (1 + (num_experts - 1) * cosine))


def _drop(delta_NX: torch.Tensor, keep: torch.Tensor, draw_NX: torch.Tensor) -> torch.Tensor:
    return torch.where(draw_NX < keep, delta_NX / keep, 0)
