"""routing_weights compared with the equations of the paper, written out token by token in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xft_core.moe.router import NOISE_FLOOR, Router
from xft_core.moe.weights import routing_weights
from xft_core.recipe.sections import Normalization, UpcycleConfig


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    exponentials = [math.exp(value - top) for value in values]
    return [item / sum(exponentials) for item in exponentials]


def by_the_equations(logits: list[float], k: int, normalization: str, shared_expert: bool) -> dict[int, float]:
    """Return the weight of each chosen expert for one token, as the paper defines it; ties go to the lower index."""
    num_chosen = k - int(shared_expert)
    chosen = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:num_chosen]
    if not shared_expert:
        return dict(zip(chosen, softmax([logits[i] for i in chosen]), strict=True))
    s = softmax(logits)
    inner = softmax([s[i] for i in chosen])
    total = sum(s[i] for i in chosen)
    weights = {0: 1 - max(s)}
    for place, i in enumerate(chosen):
        weights[i + 1] = {"xft": max(s) * inner[place], "renormalize": max(s) * s[i] / total, "none": s[i]}[normalization]
    return weights


def check(logits_TN: torch.Tensor, k: int, normalization: str, shared_expert: bool) -> None:
    index, weight = routing_weights(logits_TN, k, normalization, shared_expert)  # type: ignore[arg-type]
    assert index.shape == weight.shape == (len(logits_TN), k)
    assert index.dtype == torch.int64 and weight.dtype == torch.float32
    for token in range(len(logits_TN)):
        expected = by_the_equations(logits_TN[token].double().tolist(), k, normalization, shared_expert)
        found = dict(zip(index[token].tolist(), weight[token].tolist(), strict=True))
        assert found.keys() == expected.keys()
        assert all(abs(found[i] - expected[i]) <= 1e-6 for i in expected)
        if shared_expert:
            assert index[token, -1] == 0


@pytest.mark.parametrize("normalization", ["xft", "renormalize", "none"])
@pytest.mark.parametrize(("n", "k"), [(n, k) for n in (2, 4, 8) for k in range(2, n + 1)])
def test_shared_expert_routing_agrees_with_the_equations(n: int, k: int, normalization: str) -> None:
    generator = torch.Generator().manual_seed(n * 100 + k)
    for num_tokens in (1, 7):
        check(torch.randn(num_tokens, n - 1, generator=generator) * 3, k, normalization, True)


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in (2, 4, 8) for k in range(1, n + 1)])
def test_vanilla_routing_agrees_with_the_equations(n: int, k: int) -> None:
    check(torch.randn(5, n, generator=torch.Generator().manual_seed(n * 100 + k)), k, "xft", False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared_expert", [True, False])
def test_half_precision_logits_are_computed_in_fp32(dtype: torch.dtype, shared_expert: bool) -> None:
    check((torch.randn(6, 7, generator=torch.Generator().manual_seed(0)) * 4).to(dtype), 3, "xft", shared_expert)


@pytest.mark.parametrize("normalization", ["xft", "renormalize", "none"])
def test_ties_go_to_the_lower_index(normalization: str) -> None:
    check(torch.zeros(3, 7), 4, normalization, True)
    check(torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0, 0.0, 1.0]]), 5, normalization, True)
    index, _ = routing_weights(torch.zeros(1, 7), 4)
    assert index.tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize("scale", [1e4, 6e4, 1e30])
def test_huge_logits_give_finite_weights(scale: float) -> None:
    logits = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0]]) * scale
    for shared_expert in (True, False):
        check(logits, 3, "xft", shared_expert)
        _, weight = routing_weights(logits, 3, "xft", shared_expert)
        assert torch.isfinite(weight).all() and torch.allclose(weight.sum(1), torch.ones(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = torch.zeros(3, 7)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        routing_weights(logits, 3)


def test_a_k_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="choose 2 to 8"):
        routing_weights(torch.zeros(1, 7), 9)
    with pytest.raises(ValueError, match="choose 2 to 8"):
        routing_weights(torch.zeros(1, 7), 1)
    with pytest.raises(ValueError, match="choose 1 to 7"):
        routing_weights(torch.zeros(1, 7), 8, shared_expert=False)
    with pytest.raises(ValueError, match="2 dimensions"):
        routing_weights(torch.zeros(7), 3)


def test_the_scale_mismatch_without_normalization_is_the_papers() -> None:
    """With a flat router at N=8, K=6, s_i = 1/7, so the weights sum to 1 + 4/7 = 1.571."""
    _, weight = routing_weights(torch.zeros(1, 7), 6, "none")
    assert weight.sum().item() == pytest.approx(1 + 4 / 7, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_properties_of_any_routing(data: st.DataObject) -> None:
    shared_expert = data.draw(st.booleans())
    columns = data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1 + shared_expert, columns + shared_expert))
    normalization: Normalization = data.draw(st.sampled_from(["xft", "renormalize"]))
    rows = data.draw(st.lists(
        st.lists(st.floats(-50, 50, width=32), min_size=columns, max_size=columns), min_size=1, max_size=4))
    logits = torch.tensor(rows)
    index, weight = routing_weights(logits, k, normalization, shared_expert)
    assert torch.allclose(weight.sum(1), torch.ones(len(rows)), atol=1e-6)
    assert bool((weight >= 0).all())
    assert all(len(set(row)) == k for row in index.tolist())
    again = routing_weights(logits, k, normalization, shared_expert)
    assert torch.equal(index, again[0]) and torch.equal(weight, again[1])


def test_noise_only_while_training_and_of_the_documented_size() -> None:
    torch.manual_seed(0)
    router = Router(16, UpcycleConfig(num_experts=4, num_experts_per_tok=3))
    assert router.noise is not None
    torch.nn.init.zeros_(router.noise.weight)
    x = torch.randn(4000, 16)
    assert router.eval()(x).noise_std_TR is None
    routing = router.train()(x)
    expected = math.log(2) + NOISE_FLOOR  # softplus(0) + 0.01
    assert torch.allclose(routing.noise_std_TR, torch.full((4000, 3), expected))
    assert (routing.noisy_logits_TR - routing.logits_TR).std().item() == pytest.approx(expected, rel=0.05)
    quiet = Router(16, UpcycleConfig(num_experts=4, num_experts_per_tok=3, router_noise=False)).train()(x)
    assert quiet.noisy_logits_TR is quiet.logits_TR
