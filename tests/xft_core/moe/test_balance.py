"""The balance loss: correct load estimate, padding excluded, sum or mean over layers."""

import pytest
import torch

from xft_core.moe.balance import RouterStatistics, chance_of_being_chosen, unevenness, usage
from xft_core.moe.router import Router, Routing
from xft_core.moe.weights import routing_weights
from xft_core.recipe.sections import UpcycleConfig


def routing(logits_TR: torch.Tensor, k: int = 3, noise_std: float | None = None, seed: int = 0) -> Routing:
    noisy, std = logits_TR, None
    if noise_std is not None:
        std = torch.full_like(logits_TR, noise_std)
        noisy = logits_TR + torch.randn(logits_TR.shape, generator=torch.Generator().manual_seed(seed)) * std
    return Routing(logits_TR, noisy, std, *routing_weights(noisy, k))


def test_load_estimate_is_the_chance_of_being_chosen_again() -> None:
    """Monte Carlo: redraw one expert's noise with the others' fixed, and count how often it is among the chosen."""
    generator = torch.Generator().manual_seed(0)
    logits, std, num_chosen = torch.randn(1, 5, generator=generator), torch.rand(1, 5, generator=generator) + 0.5, 2
    noisy = logits + torch.randn(1, 5, generator=generator) * std
    estimate = chance_of_being_chosen(logits, noisy, std, num_chosen)[0]
    draws = 40_000
    for expert in range(5):
        again = noisy.repeat(draws, 1)
        again[:, expert] = logits[0, expert] + torch.randn(draws, generator=generator) * std[0, expert]
        chosen = (again.topk(num_chosen).indices == expert).any(1).float().mean()
        assert estimate[expert].item() == pytest.approx(chosen.item(), abs=0.01)


def test_even_routing_costs_nothing_and_uneven_routing_something() -> None:
    even = routing(torch.eye(4).repeat(8, 1) * 5, k=2)
    uneven = routing(torch.tensor([[5.0, 0, 0, 0]]).repeat(32, 1), k=2)
    mask = torch.ones(32, dtype=torch.bool)
    assert unevenness(usage([even], mask, True), "sum").item() == pytest.approx(0, abs=1e-6)
    # All importance and all load on one expert of 4: CV^2 = 4 for each of the two, with the unbiased deviation.
    assert unevenness(usage([uneven], mask, True), "sum").item() == pytest.approx(8, rel=1e-4)


@pytest.mark.parametrize("noise_std", [None, 0.7])
def test_padding_does_not_count(noise_std: float | None) -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    whole = routing(logits, noise_std=noise_std)
    mask = torch.arange(20) < 13
    part = Routing(*(item[:13] if isinstance(item, torch.Tensor) else item for item in vars(whole).values()))
    found = unevenness(usage([whole], mask, True), "sum")
    assert torch.equal(found, unevenness(usage([part], torch.ones(13, dtype=torch.bool), True), "sum"))
    assert not torch.isclose(found, unevenness(usage([whole], torch.ones(20, dtype=torch.bool), True), "sum"))


def test_sum_and_mean_over_layers() -> None:
    layers = [routing(torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))) for seed in range(3)]
    mask = torch.ones(9, dtype=torch.bool)
    total = unevenness(usage(layers, mask, True), "sum")
    assert torch.allclose(total, sum(unevenness(usage([layer], mask, True), "sum") for layer in layers))
    assert torch.allclose(total / 3, unevenness(usage(layers, mask, True), "mean"))


def test_gradient_reaches_the_router_and_its_noise() -> None:
    torch.manual_seed(0)
    router = Router(8, UpcycleConfig(num_experts=5, num_experts_per_tok=3)).train()
    unevenness(usage([router(torch.randn(16, 8))], torch.ones(16, dtype=torch.bool), True), "sum").backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in router.parameters())


def test_a_single_routed_expert_has_nothing_to_balance() -> None:
    only = routing(torch.zeros(4, 1), k=2)
    assert unevenness(usage([only], torch.ones(4, dtype=torch.bool), True), "sum").item() == 0


def test_statistics_are_means_over_tokens_that_count() -> None:
    statistics = RouterStatistics(num_layers=1, num_experts=4, shared_expert=True)
    logits = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 9.0, 0], [0, 0, 9.0]])
    statistics.add([routing(logits, k=2)], torch.tensor([True, True, True, False]))
    statistics.add([routing(logits[:1], k=2)], torch.tensor([True]))
    layer = statistics.layers()[0]
    assert statistics.tokens == 4 and layer.load == [0.5, 0.5, 0.0]
    assert sum(layer.mean_weights) == pytest.approx(1) and layer.mean_weights[0] == layer.mean_shared_weight
    peak = torch.softmax(logits[0], 0)
    assert layer.mean_shared_weight == pytest.approx(1 - peak[0].item(), abs=1e-6)
    assert layer.entropy == pytest.approx(-(peak * peak.log()).sum().item(), abs=1e-6)
