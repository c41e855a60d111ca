"""Operators on deltas, compared with their equations, and cases where all of them agree."""

import pytest
import torch

from xft_core.mixing.operators.task_vectors import dare, della, elected_mean, model_stock, task_arithmetic, ties

SHARES = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=torch.float64)


def deltas(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(4, *(shape or (6, 10)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draws(seed: int = 1) -> torch.Tensor:
    return torch.rand(4, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_density_1_is_task_arithmetic() -> None:
    """This holds always for DARE, and for TIES and DELLA if no sign is outvoted."""
    delta = deltas()
    assert torch.equal(dare(delta, SHARES, 1.0, draws()), task_arithmetic(delta, SHARES))
    for merged in (ties(delta.abs(), SHARES, 1.0), della(delta.abs(), SHARES, 1.0, 0.0, draws())):
        assert torch.allclose(merged, task_arithmetic(delta.abs(), SHARES), rtol=0, atol=1e-12)
    assert not torch.allclose(ties(delta, SHARES, 1.0), task_arithmetic(delta, SHARES))


def test_ties_by_hand() -> None:
    delta = torch.tensor([[4.0, -1.0, 0.5, 3.0], [-2.0, -3.0, 0.1, 5.0]], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    # Kept: 4 and 3 of the first, -3 and 5 of the second. No sign is outvoted.
    assert ties(delta, half, 0.5).tolist() == [4.0, -3.0, 0.0, 4.0]
    # All kept: 4 outvotes -2. Each remaining element is the mean of those that agree.
    assert torch.allclose(ties(delta, half, 1.0), torch.tensor([4.0, -2.0, 0.3, 4.0], dtype=torch.float64))


def test_dare_keeps_the_mean_and_the_density() -> None:
    delta = deltas(2, 400, 50)
    draw = torch.rand(delta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    merged = dare(delta, SHARES, 0.25, draw)
    expected = sum(SHARES[i] * torch.where(draw[i] < 0.25, delta[i] / 0.25, 0) for i in range(4))
    assert torch.allclose(merged, expected, rtol=0, atol=1e-12)
    mean = torch.ones_like(delta)  # the expected value stays the same
    assert float(dare(mean, SHARES, 0.25, draw).mean()) == pytest.approx(1, abs=0.02)


def test_della_keeps_large_elements_oftener() -> None:
    """Probabilities rise evenly with the rank in a row, and each remaining element is divided by its own probability."""
    size = torch.arange(1, 11, dtype=torch.float64).repeat(4, 20_000, 1)
    draw = torch.rand(size.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    one = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    merged = della(size, one, 0.5, 0.6, draw)
    kept = (merged != 0).double().mean(0)
    probability = torch.linspace(0.2, 0.8, 10, dtype=torch.float64)
    assert torch.allclose(kept, probability, atol=0.02)
    assert torch.allclose(merged[:, 3][merged[:, 3] != 0], 4 / probability[3])


def test_model_stock_by_the_cosine() -> None:
    same = deltas(4)[:1].expand(4, 6, 10)
    assert torch.allclose(model_stock(same), same[0], rtol=0, atol=1e-12)
    orthogonal = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(model_stock(orthogonal), torch.zeros(4, dtype=torch.float64))
    pair = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)  # cosine 0.6
    assert torch.allclose(model_stock(pair), pair.mean(0) * (2 * 0.6 / 1.6))
    assert torch.equal(model_stock(torch.zeros(3, 5)), torch.zeros(5))


@pytest.mark.parametrize("operator", [
    lambda d, c, u: task_arithmetic(d, c), lambda d, c, u: ties(d, c, 0.3), lambda d, c, u: dare(d, c, 0.3, u),
    lambda d, c, u: della(d, c, 0.4, 0.3, u), lambda d, c, u: model_stock(d), lambda d, c, u: elected_mean(d, c)])
def test_the_order_of_experts_plays_no_part(operator) -> None:  # type: ignore[no-untyped-def]
    order = torch.tensor([2, 0, 3, 1])
    delta, draw = deltas(5), draws(6)
    assert torch.allclose(operator(delta[order], SHARES[order], draw[order]), operator(delta, SHARES, draw), rtol=0, atol=1e-12)


@pytest.mark.parametrize("operator", [
    task_arithmetic, lambda d, c: ties(d, c, 1.0), lambda d, c: dare(d, c, 1.0, draws()),
    lambda d, c: della(d, c, 1.0, 0.0, draws()), lambda d, c: model_stock(d)])
def test_equal_experts_give_that_expert(operator) -> None:  # type: ignore[no-untyped-def]
    same = deltas(7)[:1].expand(4, 6, 10)
    assert torch.allclose(operator(same, SHARES), same[0], rtol=0, atol=1e-12)
