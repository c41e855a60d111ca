"""The router's gradient through all experts, without changing the forward pass (DenseMixer).

    y        = sum_{i in T} w_i E_i(x)                  forward, and the experts' gradients
    dL/dw~_i = <dL/dy, E_i(x)>      for every expert    backward, for the weights w~ that all experts would have

Router and gate therefore get the gradient of the mixture of all experts at this output. Experts are computed once more in the
backward pass, without gradients, so only x is kept for it. Shape suffixes: T tokens, D hidden size, N experts.
"""

from collections.abc import Callable
from typing import Any

import torch

TOKENS_AT_ONCE = 4096  # bounds the memory for all experts' outputs

Outputs = Callable[[torch.Tensor], torch.Tensor]


def with_dense_gradient(
    y_TD: torch.Tensor, dense_weight_TN: torch.Tensor, x_TD: torch.Tensor, shared_TD: torch.Tensor | None,
    outputs_RTD: Outputs,
) -> torch.Tensor:
    """``y_TD`` unchanged, bit for bit, with a gradient for ``dense_weight_TN``.

    ``shared_TD``: output of the shared expert, the first of the N, or None; ``outputs_RTD``: gives those of the routed ones.
    """
    shared_TD = None if shared_TD is None else shared_TD.detach()
    result: torch.Tensor = _DenseGradient.apply(y_TD, dense_weight_TN, x_TD.detach(), shared_TD, outputs_RTD)
    return result


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, y_TD: torch.Tensor, dense_weight_TN: torch.Tensor, x_TD: torch.Tensor, shared_TD: torch.Tensor | None,
        outputs_RTD: Outputs,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_TD, shared_TD)
        device = x_TD.device.type
        ctx.outputs_RTD, ctx.dtype = outputs_RTD, dense_weight_TN.dtype
        ctx.autocast = device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        return y_TD.view_as(y_TD)

    @staticmethod
    def backward(ctx: Any, gradient_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_TD, shared_TD = ctx.saved_tensors
        device, enabled, dtype = ctx.autocast
        parts = []
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            for start in range(0, len(x_TD), TOKENS_AT_ONCE):
                rows = slice(start, start + TOKENS_AT_ONCE)
                parts.append(ctx.outputs_RTD(x_TD[rows]))
        with torch.autocast(device, enabled=False):
            product_TR = torch.cat([
                torch.einsum("rtd,td->tr", part.to(ctx.dtype), gradient.to(ctx.dtype))
                for part, gradient in zip(parts, gradient_TD.split(TOKENS_AT_ONCE), strict=True)])
            if shared_TD is not None:
                product_T1 = (shared_TD.to(ctx.dtype) * gradient_TD.to(ctx.dtype)).sum(1, keepdim=True)
                product_TR = torch.cat([product_T1, product_TR], dim=1)
        return gradient_TD, product_TR, None, None, None
