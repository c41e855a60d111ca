"""RegMean and Fisher merging, compared with the sums they minimize and with their limits."""

import torch

from xft_core.mixing.operators.closed_forms import OFF_DIAGONAL, RIDGE, fisher, regmean


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gram(seed: int) -> torch.Tensor:
    x = numbers(seed, 50, 6)
    return x.t() @ x


def test_regmean_is_the_least_squares_solution() -> None:
    experts = [numbers(i, 4, 6) for i in range(3)]
    grams = torch.stack([gram(10 + i) for i in range(3)])
    found = regmean(experts, grams).clone().requires_grad_()
    shrunk = [item * OFF_DIAGONAL + torch.diag(item.diagonal() * (1 - OFF_DIAGONAL) + RIDGE * item.trace() / 6)
              for item in grams]
    loss = sum(((found - expert) @ item @ (found - expert).t()).trace() for expert, item in zip(experts, shrunk, strict=True))
    gradient, = torch.autograd.grad(loss, found)
    assert gradient.abs().max() < 1e-9 * float(grams.abs().max())


def test_regmean_of_equal_experts_and_of_equal_statistics() -> None:
    expert = numbers(0, 4, 6)
    grams = torch.stack([gram(i) for i in range(3)])
    assert torch.allclose(regmean([expert] * 3, grams), expert, rtol=0, atol=1e-6)
    experts = [numbers(i, 4, 6) for i in range(3)]
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    proportional = torch.stack([weight * gram(9) for weight in weights])
    mean = sum(weight * expert for weight, expert in zip(weights, experts, strict=True))
    assert torch.allclose(regmean(experts, proportional), mean, rtol=0, atol=1e-6)


def test_regmean_leaves_out_an_expert_without_tokens() -> None:
    experts = [numbers(i, 4, 6) for i in range(2)]
    assert torch.allclose(regmean(experts, torch.stack([gram(1), torch.zeros(6, 6)])), experts[0], rtol=0, atol=1e-6)


def test_regmean_of_fewer_tokens_than_inputs_is_finite() -> None:
    x = numbers(0, 2, 6)
    found = regmean([numbers(i, 4, 6) for i in range(2)], torch.stack([x.t() @ x] * 2))
    assert found.isfinite().all() and found.abs().max() < 10


def test_fisher_by_hand_and_its_limits() -> None:
    experts = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    information = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    assert torch.allclose(fisher(experts, information, weights), torch.tensor([1.5, 3.0], dtype=torch.float64))
    assert torch.allclose(fisher(experts, torch.zeros(2, 2), weights), torch.tensor([2.0, 3.0], dtype=torch.float64))
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert torch.allclose(fisher(experts, torch.ones(2, 2), shares), torch.tensor([1.5, 2.5], dtype=torch.float64))
    same = experts[:1].expand(2, 2)
    assert torch.allclose(fisher(same, information, shares), same[0], rtol=0, atol=1e-12)


def test_the_order_of_experts_plays_no_part() -> None:
    experts, grams = [numbers(i, 4, 6) for i in range(3)], torch.stack([gram(i) for i in range(3)])
    order = [2, 0, 1]
    assert torch.allclose(regmean([experts[i] for i in order], grams[order]), regmean(experts, grams), rtol=0, atol=1e-10)
    shares, information = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.stack(experts).abs()
    assert torch.allclose(fisher(torch.stack(experts)[order], information[order], shares[order]),
                          fisher(torch.stack(experts), information, shares), rtol=0, atol=1e-12)
