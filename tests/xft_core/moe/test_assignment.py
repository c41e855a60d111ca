"""Experts assigned by a hash or at random: even, the same wherever they are computed, and constant for an example."""

import pytest
import torch

from xft_core.moe.assignment import example_keys, hash_order, mixed_bits
from xft_core.moe.router import Router
from xft_core.recipe.sections import UpcycleConfig


def router(kind: str, **fields: object) -> Router:
    return Router(8, UpcycleConfig(**({"num_experts": 4, "num_experts_per_tok": 1, "shared_expert": False, "router": kind}
                                      | fields)))  # type: ignore[arg-type]


def splitmix(x: int) -> int:
    mask = 2**64 - 1
    x = x * 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def test_bits_are_mixed_as_splitmix64_does() -> None:
    numbers = [0, 1, 2, 50_000, 2**40, -7]
    found = mixed_bits(torch.tensor(numbers)).tolist()
    assert [item % 2**64 for item in found] == [splitmix(item % 2**64) for item in numbers]


def test_tokens_are_spread_evenly_over_experts_and_over_pairs_of_them() -> None:
    order_TR = hash_order(torch.arange(32_000), 5)
    first_T2 = order_TR.argsort(dim=1, descending=True)[:, :2]
    pairs = torch.bincount(first_T2[:, 0] * 5 + first_T2[:, 1], minlength=25).view(5, 5)
    assert (pairs.sum(1) / 6400 - 1).abs().max() < 0.05
    assert (pairs[~torch.eye(5, dtype=torch.bool)] / 1600 - 1).abs().max() < 0.1


def test_the_hashed_expert_is_that_of_the_token_alone() -> None:
    hashed = router("hashed")
    assert not list(hashed.parameters())
    hashed.inputs.key_T = torch.tensor([5, 9, 5, 7, 5])
    routing = hashed(torch.randn(5, 8))
    again = hashed.train()(torch.randn(5, 8))
    assert torch.equal(routing.expert_index_TK, again.expert_index_TK)
    assert routing.expert_index_TK[0] == routing.expert_index_TK[2] == routing.expert_index_TK[4]
    assert torch.equal(routing.weight_TK, torch.ones(5, 1))
    hashed.inputs.key_T = None
    with pytest.raises(ValueError, match="needs the ids of the tokens"):
        hashed(torch.randn(5, 8))


def test_beside_a_shared_expert_the_weights_are_those_of_equal_probabilities() -> None:
    shared = router("hashed", num_experts_per_tok=3, shared_expert=True)
    shared.inputs.key_T = torch.arange(6)
    assert torch.allclose(shared(torch.randn(6, 8)).weight_TK, torch.tensor([[1 / 6, 1 / 6, 2 / 3]]))


def test_random_experts_are_drawn_from_the_seed_while_training_and_all_alike_afterwards() -> None:
    drawn, x_TD, found = router("random").train(), torch.randn(3000, 8), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(drawn(x_TD).expert_index_TK)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert (torch.bincount(found[0][:, 0]) / 750 - 1).abs().max() < 0.15
    for kind in ("random", "by_example"):
        routing = router(kind, num_experts_per_tok=2, shared_expert=True).eval()(x_TD[:4])
        assert routing.expert_index_TK.tolist() == [[1, 2, 3, 0]] * 4
        assert torch.allclose(routing.weight_TK, torch.tensor([1 / 9, 1 / 9, 1 / 9, 2 / 3]).expand(4, 4))


def test_an_example_has_one_key_whatever_it_is_packed_with() -> None:
    first, second, third = [4, 8, 15], [16, 23], [8, 4, 15]  # the first and the third have the same tokens
    ids = torch.tensor([[*first, *second, *third], [*third, *first, *second]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 0, 1, 2, 0, 1]])
    keys = example_keys(ids, positions).view(2, 8)
    assert keys[0, :3].unique().numel() == keys[0, 3:5].unique().numel() == 1
    assert keys[0].unique().numel() == 3
    assert torch.equal(keys[0], torch.cat([keys[1, 3:6], keys[1, 6:], keys[1, :3]]))
    assert torch.equal(example_keys(torch.tensor([first]), None), keys[0, :3])
