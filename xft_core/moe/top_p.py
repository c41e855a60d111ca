"""p of top-p routing, steered so that a step's mean number of active experts meets its target (DTop-p, arXiv 2512.13996).

    e = mean |T| - target;  I = sum of e over the steps;  p <- clip(p - 0.1 e / R - 0.01 I / R, 0.05, 0.999)

All layers share one p, so a layer with flat probabilities may use more experts than another. The integral is held while p is at
a limit, so that it does not grow without bound. p keeps its value after training, and evaluation uses it.
"""

import torch

from xft_core.moe.router import Router

PROPORTIONAL, INTEGRAL = 0.1, 0.01
LEAST, MOST = 0.05, 0.999


@torch.no_grad()
def steer(routers: list[Router], mean_active: float) -> None:
    """One step of the controller. ``mean_active``: routed experts per token, mean over tokens and layers of a step."""
    upcycle = routers[0].upcycle
    assert upcycle.target_active is not None and routers[0].top_p is not None
    error = mean_active - (upcycle.target_active - int(upcycle.shared_expert))
    p, total = routers[0].top_p.tolist()
    wished = p - (PROPORTIONAL * error + INTEGRAL * (total + error)) / upcycle.num_routed
    if LEAST < wished < MOST:
        total += error
    state = torch.tensor([min(max(wished, LEAST), MOST), total], dtype=torch.float64)
    for router in routers:
        assert router.top_p is not None
        router.top_p.copy_(state)
