"""The routed experts, compared with their definition in values and gradients, and the number of different matrix products."""


import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import dense_model
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.experts import RoutedExperts, _round_up
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle

NUM_EXPERTS = 4


@pytest.fixture(scope="module", params=["llama", "starcoder2"])
def routed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RoutedExperts:
    """Create three routed experts with different values, with a gate and without biases, or vice versa."""
    root = tmp_path_factory.mktemp(request.param)
    dense_model(root / "dense", request.param)
    (root / "moe").mkdir()
    upcycle(root / "dense", root / "moe", UpcycleConfig(num_experts=NUM_EXPERTS, num_experts_per_tok=3), 0)
    experts = moe_blocks(load_model(root / "moe", torch.float32))[0].experts
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return experts


def by_definition(experts: RoutedExperts, x_TD: torch.Tensor, index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """Compute the result token by token."""
    bias = [getattr(experts, f"{name}_bias", None) for name in (experts.up_parameter, "down_proj")]
    rows = []
    for x_D, index_K, weight_K in zip(x_TD, index_TK.tolist(), weight_TK, strict=True):
        y_D = torch.zeros_like(x_D)
        for expert, weight in zip(index_K, weight_K, strict=True):
            h = getattr(experts, experts.up_parameter)[expert] @ x_D + (0 if bias[0] is None else bias[0][expert])
            h = experts.act_fn(h[:len(h) // 2]) * h[len(h) // 2:] if experts.has_gate else experts.act_fn(h)
            y_D = y_D + weight * (experts.down_proj[expert] @ h + (0 if bias[1] is None else bias[1][expert]))
        rows.append(y_D)
    return torch.stack(rows)


def batch(experts: RoutedExperts, tokens: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return tokens, two of three experts for each, and their weights. The last expert gets no tokens."""
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(tokens, experts.down_proj.shape[1], generator=generator).to(dtype)
    index_TK = torch.rand(tokens, NUM_EXPERTS - 2, generator=generator).argsort(dim=1)
    return x_TD, index_TK, torch.rand(tokens, 2, generator=generator).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("tokens", [1, 37, 200])
def test_values_and_gradients_are_the_definitions(
        tokens: int, dtype: torch.dtype, tolerance: float, routed: RoutedExperts) -> None:
    """In bf16, padding rows that belong to no token change nothing. Tolerances are relative to the largest value."""
    found: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    for way, results, precision in ((routed, found, dtype), (None, wanted, torch.float64)):
        experts = routed.to(precision)
        x_TD, index_TK, weight_TK = (item.to(precision) if item.is_floating_point() else item
                                     for item in batch(routed, tokens, 1, dtype))
        leaves = [x_TD.requires_grad_(), weight_TK.requires_grad_(), *experts.parameters()]
        y_TD = way(x_TD, index_TK, weight_TK) if way else by_definition(experts, x_TD, index_TK, weight_TK)
        gradients = torch.autograd.grad((y_TD * torch.linspace(-1, 1, y_TD.numel()).view_as(y_TD)).sum(), leaves)
        results += [y_TD.detach().double(), *(gradient.double() for gradient in gradients)]
    routed.to(torch.float32)
    for mine, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 0
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()


@given(st.integers(0, 10**6))
def test_rounding_up_costs_at_most_a_sixteenth(count: int) -> None:
    assert count <= _round_up(count) <= count + count // 16
    assert _round_up(_round_up(count)) == _round_up(count)


@pytest.mark.parametrize(("dtype", "numbers"), [(torch.bfloat16, 12), (torch.float32, 61)])
def test_products_of_16_bits_have_few_numbers_of_rows(
        dtype: torch.dtype, numbers: int, routed: RoutedExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product is compiled once for each number of rows, and kept. Without rounding, most steps compiled, and memory grew."""
    linear, rows = torch.nn.functional.linear, set()

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows.add(len(x))
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    experts = routed.to(dtype)
    for tokens in range(100, 161):
        experts(*batch(routed, tokens, 2, dtype))
    routed.to(torch.float32)
    assert rows - {0} <= set(range(100, 161))
    assert len(rows - {0}) == numbers
