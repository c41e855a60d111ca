"""The controller of p reaches its target and stays within its limits."""

import torch

from xft_core.moe.balance import BIAS_STEP, counts, move_bias
from xft_core.moe.router import Router
from xft_core.moe.top_p import LEAST, MOST, steer
from xft_core.recipe.sections import UpcycleConfig

UPCYCLE = UpcycleConfig(num_experts=8, num_experts_per_tok=8, routing="top_p", target_active=3.5)


def router(upcycle: UpcycleConfig = UPCYCLE) -> Router:
    torch.manual_seed(0)
    made = Router(16, upcycle).to(torch.bfloat16)
    if upcycle.routing == "top_p":
        made.add_top_p()
    return made


def test_p_starts_where_equal_probabilities_meet_the_target_and_is_not_rounded_with_the_weights() -> None:
    found = router().top_p
    assert found is not None and found.dtype == torch.float64 and found.tolist() == [2.5 / 7, 0.0]


def test_the_mean_number_of_experts_comes_to_its_target() -> None:
    routers = [router().float().train() for _ in range(2)]
    for item in routers:
        item.add_top_p()
    routers[1].output.weight.data *= 3  # more confident than the other
    found = []
    for _ in range(120):
        active = sum(float((item(torch.randn(500, 16)).weight_TK[:, :-1] > 0).sum(1).float().mean()) for item in routers) / 2
        found.append(active)
        steer(routers, active)
    assert abs(sum(found[60:]) / 60 - 2.5) < 0.05 * 2.5
    assert all(item.top_p is not None and item.top_p.equal(routers[0].top_p) for item in routers)


def test_p_keeps_to_its_limits_and_leaves_them_again() -> None:
    steered = router()
    for active, limit in ((7.0, LEAST), (1.0, MOST)):
        for _ in range(400):
            steer([steered], active)
        assert steered.top_p is not None and steered.top_p[0] == limit
    for _ in range(30):
        steer([steered], 7.0)
    assert steered.top_p is not None and steered.top_p[0] < 0.9  # the accumulated error at the limit does not hold it there


def test_the_bias_moves_towards_equal_load_and_chooses_by_it() -> None:
    biased = router(UpcycleConfig(num_experts=4, num_experts_per_tok=2, router_noise=False)).float()
    plain = biased(torch.randn(200, 16)).expert_index_TK
    biased.add_balance_bias()
    torch.manual_seed(1)
    x_TD, mask_T = torch.randn(2000, 16) + 1, torch.ones(2000, dtype=torch.bool)
    assert plain.shape == (200, 2)
    for step in range(300):
        counts_LR = counts([biased(x_TD)], mask_T, True)
        if step == 0:
            first_R = counts_LR[0].double()
        move_bias([biased], counts_LR)
    assert biased.balance_bias is not None and biased.balance_bias.abs().max() <= 300 * BIAS_STEP + 1e-6
    last_R = counts_LR[0].double()
    assert last_R.std() / last_R.mean() < 0.1 < 0.3 < first_R.std() / first_R.mean()
    routing = biased(x_TD)
    chosen_T1 = routing.logits_TR.softmax(-1).gather(1, routing.expert_index_TK[:, :1] - 1)
    assert torch.allclose(routing.weight_TK[:, :1], routing.logits_TR.softmax(-1).amax(1, keepdim=True))
    assert (chosen_T1 < routing.weight_TK[:, :1]).any()  # some tokens go elsewhere, but are weighted by the router alone
