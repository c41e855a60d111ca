"""Weights beyond the paper's: temperature, top-p, another order and another share. At its limit, each gives the plain ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xft_core.moe.weights import routing_weights

LOGITS_TN = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * 2


def test_temperature_is_that_of_the_inner_softmax() -> None:
    index_TK, weight_TK = routing_weights(LOGITS_TN, 6, temperature=0.2)
    s_TN = LOGITS_TN.softmax(-1)
    expected_TK = s_TN.amax(1, keepdim=True) * (s_TN.gather(1, index_TK[:, :-1] - 1) / 0.2).softmax(-1)
    assert torch.allclose(weight_TK[:, :-1], expected_TK)
    assert torch.allclose(weight_TK[:, -1], 1 - s_TN.amax(1))
    assert torch.equal(index_TK, routing_weights(LOGITS_TN, 6)[0])


def test_a_certain_router_gives_its_best_expert_what_the_temperature_allows() -> None:
    certain = torch.tensor([[50.0, 0, 0, 0, 0, 0, 0]])
    assert routing_weights(certain, 6)[1][0, 0].item() == pytest.approx(0.405, abs=1e-3)
    assert routing_weights(certain, 6, temperature=0.2)[1][0, 0].item() == pytest.approx(0.974, abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 1), st.integers(2, 8), st.booleans(), st.integers(0, 10**6))
def test_top_p_takes_the_smallest_set_that_holds_p(p: float, k: int, shared_expert: bool, seed: int) -> None:
    logits_TN = torch.randn(5, 7 + int(not shared_expert), generator=torch.Generator().manual_seed(seed)) * 2
    index_TK, weight_TK = routing_weights(logits_TN, k, shared_expert=shared_expert, top_p=torch.tensor(p, dtype=torch.float64))
    assert torch.allclose(weight_TK.sum(1), torch.ones(5), atol=1e-6)
    for s_N, index_K, weight_K in zip(logits_TN.softmax(-1).tolist(), index_TK.tolist(), weight_TK.tolist(), strict=True):
        routed = list(zip(index_K, weight_K, strict=True))[:-1 if shared_expert else None]
        found = [index - int(shared_expert) for index, weight in routed if weight > 0]
        falling = sorted(range(len(s_N)), key=lambda i: -s_N[i])[:len(routed)]
        sums = [sum(s_N[i] for i in falling[:size]) for size in range(1, len(falling) + 1)]
        least = next((size for size, total in enumerate(sums, 1) if total >= p - 1e-6), len(falling))
        most = next((size for size, total in enumerate(sums, 1) if total >= p + 1e-6), len(falling))
        assert found == falling[:len(found)] and least <= len(found) <= most


@pytest.mark.parametrize("normalization", ["xft", "renormalize", "none"])
@pytest.mark.parametrize("shared_expert", [True, False])
def test_p_of_one_is_all_experts_bit_for_bit(normalization: str, shared_expert: bool) -> None:
    columns = LOGITS_TN if shared_expert else torch.cat([LOGITS_TN, LOGITS_TN[:, :1] - 9], 1)
    plain = routing_weights(columns, 8, normalization, shared_expert)  # type: ignore[arg-type]
    top_p = routing_weights(columns, 8, normalization, shared_expert, top_p=torch.tensor(1.0))  # type: ignore[arg-type]
    assert torch.equal(plain[0], top_p[0]) and torch.equal(plain[1], top_p[1])


def test_experts_that_p_leaves_out_get_no_gradient_from_their_weight() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.1]], requires_grad=True)
    _, weight_TK = routing_weights(logits, 4, top_p=torch.tensor(0.5))
    assert weight_TK[0, 1:3].tolist() == [0, 0]
    assert weight_TK[0, 0].item() == pytest.approx(logits.detach().softmax(-1).max().item())


def test_ties_in_top_p_go_to_the_lower_index() -> None:
    index_TK, weight_TK = routing_weights(torch.zeros(2, 4), 5, top_p=torch.tensor(0.5))
    assert index_TK.tolist() == [[1, 2, 3, 4, 0]] * 2 and (weight_TK > 0).tolist() == [[True, True, False, False, True]] * 2


def test_a_bias_of_zero_changes_no_choice_and_another_changes_the_choice_alone() -> None:
    logits = torch.cat([LOGITS_TN, torch.tensor([[1000.0, 0, -200, -150, -101, -300, -90]])])  # whose s underflows to zero
    plain = routing_weights(logits, 5)
    same = routing_weights(logits, 5, order_TN=logits.softmax(-1) + torch.zeros(7))
    assert torch.equal(plain[0], same[0]) and torch.equal(plain[1], same[1])
    bias = torch.tensor([0, 0, 0, 0, 0, 0, 2.0])
    index_TK, weight_TK = routing_weights(LOGITS_TN, 3, order_TN=LOGITS_TN.softmax(-1) + bias)
    s_TN = LOGITS_TN.softmax(-1)
    assert (index_TK[:, 0] == 7).all()
    expected_TK = s_TN.amax(1, keepdim=True) * s_TN.gather(1, index_TK[:, :-1] - 1).softmax(-1)
    assert torch.allclose(weight_TK[:, :-1], expected_TK)


def test_another_share_takes_the_place_of_the_largest_probability() -> None:
    share_T1 = torch.linspace(0.1, 0.9, 40)[:, None]
    _, weight_TK = routing_weights(LOGITS_TN, 4, routed_share_T1=share_T1)
    assert torch.allclose(weight_TK[:, -1:], 1 - share_T1) and torch.allclose(weight_TK[:, :-1].sum(1, keepdim=True), share_T1)
