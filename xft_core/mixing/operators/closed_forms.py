"""Merges in closed form, one tensor at a time, from statistics of every expert on calibration rows (calibration.py).

Shape suffixes: N experts, O rows of a matrix (its outputs), I columns (its inputs), X elements of any tensor.
"""

from collections.abc import Iterable

import torch

OFF_DIAGONAL = 0.9  # RegMean's factor for the Gram matrices' other elements
RIDGE = 1e-4  # of the mean of a Gram matrix's diagonal
FISHER_FLOOR = 1e-6  # of the mean Fisher information of a tensor, for elements that no row affects


def regmean(experts: Iterable[torch.Tensor], gram_NII: torch.Tensor) -> torch.Tensor:
    """W^T = (sum_i G_i)^-1 sum_i G_i W_i^T (arXiv 2212.09849), shape O,I in fp64.

    W minimises sum_i sum_{x routed to i} w_i |W x - W_i x|^2, G_i = sum w_i x x^T, with off-diagonals times 0.9 and
    1e-4 tr G_i / I added to the diagonal. Equal G_i give the mean of the experts; proportional ones give the weighted mean.

    Args:
        experts: matrices O,I, in the order of gram_NII; read one after the other.
        gram_NII: the summed G_i.
    """
    total_II = torch.zeros(gram_NII.shape[1:], dtype=torch.float64)
    right_IO: torch.Tensor | None = None
    for gram_II, weight_OI in zip(gram_NII, experts, strict=True):
        shrunk_II = gram_II.double() * OFF_DIAGONAL
        shrunk_II.diagonal().copy_(gram_II.diagonal())
        shrunk_II.diagonal().add_(RIDGE * gram_II.diagonal().double().mean())
        total_II += shrunk_II
        product_IO = shrunk_II @ weight_OI.double().t()
        right_IO = product_IO if right_IO is None else right_IO + product_IO
    assert right_IO is not None
    return torch.linalg.solve(total_II, right_IO).t()


def fisher(expert_NX: torch.Tensor, fisher_NX: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """sum_i c_i F_i W_i / sum_i c_i F_i for every element (arXiv 2111.09832), F_i: the diagonal of expert i's Fisher
    information, at least a millionth of the tensor's mean. Equal F_i give the weighted mean."""
    fisher_NX = fisher_NX.double()
    mean = float(fisher_NX.mean())
    if mean == 0:
        fisher_NX = torch.ones_like(fisher_NX)
    weight_NX = weight_N.double().view(-1, *[1] * (expert_NX.dim() - 1)) * fisher_NX.clamp_min(FISHER_FLOOR * mean)
    return (weight_NX * expert_NX.double()).sum(0) / weight_NX.sum(0)
