"""A loss that makes a token's experts differ in their outputs.

    D_i   = E_i(x) - E_0(x)                       without a shared expert: - the mean over the routed experts
    L_div = mean_{i<j in T} <D_i, D_j>^2 / ((|D_i|^2 + eps)(|D_j|^2 + eps)),   eps = (1e-3 |sg(E_0(x))|)^2

over some tokens' active pairs. eps makes loss and gradient 0 at the start, where all D are 0. x gets no gradient: the experts
should differ, not their inputs. Shape suffixes: X tokens of a sample, D hidden size, R routed experts.
"""

import torch

EPSILON = 1e-3  # of the length of the shared expert's output


def overlap(outputs_RXD: torch.Tensor, reference_XD: torch.Tensor, active_XR: torch.Tensor) -> torch.Tensor:
    """L_div of the routed experts' outputs relative to ``reference_XD``, in fp32; 0 if no token has two active experts."""
    wide = torch.promote_types(outputs_RXD.dtype, torch.float32)
    delta_RXD, reference_XD = (outputs_RXD - reference_XD).to(wide), reference_XD.detach().to(wide)
    gram_XRR = torch.einsum("rxd,qxd->xrq", delta_RXD, delta_RXD)
    square_XR = gram_XRR.diagonal(dim1=1, dim2=2) + (EPSILON * reference_XD.norm(dim=1, keepdim=True)).square()
    cosine_XRR = gram_XRR.square() / (square_XR[:, :, None] * square_XR[:, None, :])
    pairs_XRR = (active_XR[:, :, None] & active_XR[:, None, :]).triu(1)
    return torch.where(pairs_XRR, cosine_XRR, 0).sum() / pairs_XRR.sum().clamp(min=1)
