"""The routers' loss terms: for a whole step they are the same however it is divided, and each follows its definition."""

import math
from typing import Any

import pytest
import torch

from xft_core.data.packing import IGNORED
from xft_core.errors import RecipeError
from xft_core.moe.balance import unevenness, usage
from xft_core.moe.router import Router, Routing
from xft_core.recipe.sections import SftConfig, UpcycleConfig
from xft_core.training.router_terms import RouterTerms, answers, entropy, evenly_chosen, score_variance

TOKEN_GATE = UpcycleConfig(num_experts=4, num_experts_per_tok=3, shared_gate="token")


class Block:
    """The part of a MoeBlock that the terms need."""

    def __init__(self, upcycle: UpcycleConfig, seed: int) -> None:
        torch.manual_seed(seed)
        self.router = Router(8, upcycle)
        if upcycle.routing == "top_p":
            self.router.add_top_p()
        self.keep_routing, self.overlap_tokens_X = False, None


def terms_of(upcycle: UpcycleConfig = TOKEN_GATE, steps: int = 10, **sft: Any) -> RouterTerms:
    blocks: Any = [Block(upcycle, seed) for seed in range(2)]
    return RouterTerms(blocks, SftConfig(**sft), steps)


def labels(tokens: int) -> torch.Tensor:
    """Return the labels of one sequence whose second half is response."""
    return torch.where(torch.arange(tokens) < tokens // 2, IGNORED, 1)[None]


def pass_of(terms: RouterTerms, x_TD: torch.Tensor) -> tuple[torch.Tensor, list[Routing]]:
    routings = [block.router(x_TD) for block in terms.blocks]
    return terms.loss(routings, torch.ones(len(x_TD), dtype=torch.bool), False), routings


def gradient(terms: RouterTerms, loss: torch.Tensor) -> torch.Tensor:
    parameters = [item for block in terms.blocks for item in block.router.parameters() if item.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([torch.zeros(item.numel()) if made is None else made.flatten()
                      for item, made in zip(parameters, found, strict=True)])


def test_over_a_step_of_one_pass_the_balance_loss_is_as_ever() -> None:
    x_TD, values = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), []
    for scope in ("micro_batch", "step"):
        terms = terms_of(UpcycleConfig(num_experts=4, num_experts_per_tok=3), balance_scope=scope)
        terms.begin_step(1, 1, 30, 15)
        terms.begin_pass(labels(30))
        loss, routings = pass_of(terms, x_TD)
        assert torch.equal(loss, 0.01 * unevenness(usage(routings, torch.ones(30, dtype=torch.bool), True), "sum"))
        values.append((loss, gradient(terms, loss), terms.take_values()[0]["balance_loss"]))
    assert values[0][0] == values[1][0] and torch.equal(values[0][1], values[1][1]) and values[0][2] == values[1][2]


def test_a_step_in_passes_that_are_alike_balances_as_one_pass_does() -> None:
    """Passes over the same tokens all have the mean of the step from the start, so the sum of their gradients is exact."""
    x_TD = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    gradients, values = [], []
    for passes in (1, 3):
        terms = terms_of(UpcycleConfig(num_experts=4, num_experts_per_tok=3, router_noise=False), balance_scope="step")
        terms.begin_step(1, passes, 30 * passes, 15 * passes)
        total = torch.zeros(())
        for _ in range(passes):
            terms.begin_pass(labels(30))
            total = total + pass_of(terms, x_TD)[0]
        gradients.append(gradient(terms, total))
        values.append(terms.take_values()[0]["balance_loss"])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6) and gradients[0].abs().max() > 1e-4
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_over_a_step_a_pass_may_use_few_experts_if_others_use_the_rest() -> None:
    def certain(expert: int) -> Routing:
        logits_TR = torch.full((10, 2), -9.0)
        logits_TR[:, expert] = 9.0
        index_TK = torch.tensor([[expert + 1, 0]]).expand(10, 2)
        return Routing(logits_TR, logits_TR, None, index_TK, torch.tensor([[0.9, 0.1]]).expand(10, 2))

    found = {}
    for scope in ("micro_batch", "step"):
        terms = terms_of(UpcycleConfig(num_experts=3, num_experts_per_tok=2), balance_scope=scope)
        terms.begin_step(1, 2, 20, 10)
        for expert in (0, 1):
            terms.begin_pass(labels(10))
            terms.loss([certain(expert)] * 2, torch.ones(10, dtype=torch.bool), False)
        found[scope] = terms.take_values()[0]["balance_loss"]
    assert found["micro_batch"] == pytest.approx(8, rel=1e-4) and found["step"] == pytest.approx(0, abs=1e-6)


def test_the_gates_budget_is_of_response_tokens_and_follows_the_steps() -> None:
    x_TD = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    for number, target, weight in ((1, 0.1, 2.0), (4, 0.175, 2.0), (7, 0.25, 0.2), (18, 0.25, 0.2)):
        terms = terms_of(steps=18, balance_loss_weight=0.0, gate_budget_weight=2.0)
        terms.begin_step(number, 1, 24, 12)
        terms.begin_pass(labels(24))
        loss, routings = pass_of(terms, x_TD)
        means = [1 - item.weight_TK[11:23, -1].mean().item() for item in routings]  # positions that predict response tokens
        expected = sum((mean - target) ** 2 for mean in means) / 2
        assert loss.item() == pytest.approx(weight * expected, rel=1e-4)
        values, added = terms.take_values()
        assert values["gate_budget_loss"] == pytest.approx(expected, rel=1e-4) and added == pytest.approx(loss.item(), rel=1e-4)


def test_the_gates_budget_is_exact_where_the_passes_are_alike() -> None:
    x_TD, found = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), []
    for passes in (1, 4):
        terms = terms_of(balance_loss_weight=0.0)
        terms.begin_step(1, passes, 24 * passes, 12 * passes)
        total = torch.zeros(())
        for _ in range(passes):
            terms.begin_pass(labels(24))
            total = total + pass_of(terms, x_TD)[0]
        found.append(gradient(terms, total))
    assert torch.allclose(found[0], found[1], atol=1e-7) and found[0].abs().max() > 1e-4


def test_samples_wait_for_a_tenth_of_the_steps_and_take_at_most_256_tokens() -> None:
    terms = terms_of(UpcycleConfig(num_experts=4, num_experts_per_tok=3), steps=20, diversity_weight=1.0)
    for number, passes, taken in ((2, 1, None), (3, 1, 256), (3, 4, 64), (3, 300, 1)):
        terms.begin_step(number, passes, 2000, 1000)
        terms.begin_pass(labels(2000))
        tokens_X = terms.blocks[0].overlap_tokens_X
        assert tokens_X is terms.blocks[1].overlap_tokens_X
        assert (None if tokens_X is None else len(tokens_X)) == taken
        if tokens_X is not None:
            assert tokens_X.min() >= 999 and tokens_X.max() < 1999
    terms.end_step()
    assert terms.blocks[0].overlap_tokens_X is None


def test_evenly_chosen_places() -> None:
    where_T = torch.tensor([False, True] * 50)
    assert evenly_chosen(where_T, 5).tolist() == [1, 21, 41, 61, 81]
    assert evenly_chosen(where_T, 60).tolist() == list(range(1, 100, 2))
    assert answers(torch.tensor([[IGNORED, IGNORED, 5, 6], [IGNORED, 7, IGNORED, IGNORED]])).tolist() == [
        False, True, True, False, True, False, False, False]


def test_entropy_and_variance_of_the_routers_probabilities() -> None:
    logits = torch.tensor([[0.0, 0, 0], [90.0, 0, 0], [0.0, 0, 0]])
    routing = Routing(logits, logits, None, torch.zeros(3, 1), torch.ones(3, 1))
    mask_T = torch.tensor([True, True, False])
    assert entropy([routing, routing], mask_T).item() == pytest.approx(math.log(3), abs=1e-6)
    assert score_variance([routing], torch.tensor([0, 1])).item() == pytest.approx((2 / 9) / 2, abs=1e-6)
    assert score_variance([routing], torch.tensor([], dtype=torch.long)).item() == 0


def test_entropy_is_added_for_top_p_from_a_tenth_of_the_steps_on() -> None:
    x_TD = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    config = UpcycleConfig(num_experts=4, num_experts_per_tok=4, routing="top_p", target_active=2.5)
    for number in (1, 2):
        terms = terms_of(config, steps=10, balance_loss_weight=0.0, router_entropy_weight=0.5)
        terms.begin_step(number, 1, 24, 12)
        terms.begin_pass(labels(24))
        loss, routings = pass_of(terms, x_TD)
        expected = 0.5 * entropy(routings, torch.ones(24, dtype=torch.bool)) / 24 if number == 2 else torch.zeros(())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("upcycle", "sft", "message"), [
    ({"router": "hashed"}, {"balance": "bias"}, r"sft\.balance is bias, but upcycle\.router is hashed"),
    ({"num_experts_per_tok": 2}, {"diversity_weight": 0.1}, "but there is only one"),
    ({"router": "random"}, {"router_gradient": "dense"}, "nothing could learn from it"),
    ({"router": "frozen"}, {"score_variance_weight": 0.1}, "needs a router that learns")])
def test_what_does_not_fit_is_refused(upcycle: dict[str, Any], sft: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        terms_of(UpcycleConfig(**({"num_experts": 4, "num_experts_per_tok": 3} | upcycle)), **sft)
