"""The overlap of experts' outputs and weights: 0 for copies, 1 for equals, and the same for reordered experts."""

from pathlib import Path

import pytest
import torch

from tests.factories import dense_model
from tests.xft_core.moe.test_dense_gradient import block_of
from xft_core.families import FAMILIES
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.delta_cosine import delta_cosine
from xft_core.moe.diversity import overlap
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle

CONFIG = UpcycleConfig(num_experts=4, num_experts_per_tok=3, router_noise=False)
GENERATOR = torch.Generator().manual_seed(0)


def given(experts: int = 4, tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    reference_XD = torch.randn(tokens, 16, generator=GENERATOR)
    outputs_RXD = reference_XD + torch.randn(experts, tokens, 16, generator=GENERATOR)
    return outputs_RXD, reference_XD, torch.rand(tokens, experts, generator=GENERATOR) < 0.7


def test_it_is_the_mean_squared_cosine_of_active_pairs() -> None:
    outputs_RXD, reference_XD, active_XR = given()
    cosines = [
        torch.cosine_similarity(outputs_RXD[i, x] - reference_XD[x], outputs_RXD[j, x] - reference_XD[x], dim=0).item() ** 2
        for x in range(20) for i in range(4) for j in range(i) if active_XR[x, i] and active_XR[x, j]]
    assert overlap(outputs_RXD, reference_XD, active_XR).item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-4)


def test_equal_differences_overlap_fully_and_copies_not_at_all() -> None:
    outputs_RXD, reference_XD, _ = given()
    everyone = torch.ones(20, 4, dtype=torch.bool)
    same = (reference_XD + outputs_RXD[:1]).expand(4, -1, -1)
    assert overlap(same, reference_XD, everyone).item() == pytest.approx(1, abs=1e-4)
    copies = reference_XD.expand(4, -1, -1).clone().requires_grad_()
    loss = overlap(copies, reference_XD, everyone)
    loss.backward()
    assert loss.item() == 0 and copies.grad is not None and not copies.grad.any()
    assert overlap(outputs_RXD, reference_XD, torch.zeros(20, 4, dtype=torch.bool)).item() == 0
    assert overlap(outputs_RXD[:, :0], reference_XD[:0], everyone[:0]).item() == 0


def test_the_order_of_experts_plays_no_part() -> None:
    outputs_RXD, reference_XD, active_XR = given()
    order = torch.tensor([2, 0, 3, 1])
    found = overlap(outputs_RXD[order], reference_XD, active_XR[:, order])
    assert found.item() == pytest.approx(overlap(outputs_RXD, reference_XD, active_XR).item(), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared_expert", [True, False])
def test_an_upcycled_model_begins_at_zero(family: str, shared_expert: bool, tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", family)
    (tmp_path / "moe").mkdir()
    config = CONFIG.model_copy(update={"shared_expert": shared_expert})
    upcycle(tmp_path / "dense", tmp_path / "moe", config, 0)
    model = load_model(tmp_path / "moe", torch.float32).train()
    for block in moe_blocks(model):
        block.keep_routing, block.overlap_tokens_X = True, torch.arange(4)
    model(input_ids=torch.arange(3, 11)[None])
    for block in moe_blocks(model):
        assert block.routing is not None and block.routing.overlap is not None and block.routing.overlap.item() < 1e-12


def test_a_block_looks_at_the_experts_that_its_tokens_went_to(tmp_path: Path) -> None:
    block = block_of(tmp_path, "llama", CONFIG)
    x_BSD, sample_X = torch.randn(2, 7, 32, generator=GENERATOR), torch.tensor([0, 3, 9])
    block.keep_routing, block.overlap_tokens_X = True, sample_X
    block(x_BSD)
    routing, x_XD = block.routing, x_BSD.reshape(-1, 32)[sample_X]
    assert routing is not None and routing.overlap is not None and block.shared_expert is not None
    active_XR = torch.zeros(3, 4, dtype=torch.bool).scatter(1, routing.expert_index_TK[sample_X], True)[:, 1:]
    assert active_XR.sum() == 6
    expected = overlap(block.experts.outputs_RTD(x_XD), block.shared_expert(x_XD), active_XR)
    assert torch.equal(routing.overlap, expected) and expected > 0.001
    assert block.shared_expert.training
    routing.overlap.backward()
    assert block.experts.down_proj.grad is not None and block.router.hidden.weight.grad is None


def test_outputs_of_all_experts_are_those_of_each_alone(tmp_path: Path) -> None:
    for family in ("llama", "starcoder2"):
        experts = block_of(tmp_path / family, family, CONFIG).experts
        x_TD = torch.randn(5, 32, generator=GENERATOR)
        for expert, y_TD in enumerate(experts.outputs_RTD(x_TD)):
            assert torch.allclose(y_TD, experts(x_TD, torch.full((5, 1), expert), torch.ones(5, 1)), atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "starcoder2", "phi3"])
def test_the_cosine_of_weights_is_that_of_what_they_differ_by(family: str, tmp_path: Path) -> None:
    block = block_of(tmp_path, family, CONFIG)
    assert block.shared_expert is not None
    has_bias = block.experts.has_bias
    stacks = block.family.expert_sources(has_bias)
    dense = dict(block.shared_expert.named_parameters())
    deltas = [
        torch.cat([(getattr(block.experts, name)[expert] - torch.cat([dense[source] for source in sources])).flatten()
                   for name, sources in stacks.items()])
        for expert in range(3)]
    expected = sum(torch.cosine_similarity(deltas[i], deltas[j], dim=0).item() for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    assert delta_cosine([block], lambda *_: pytest.fail("there is a shared expert")) == pytest.approx(expected, abs=1e-5)
    for name in stacks:
        getattr(block.experts, name).data[:] = getattr(block.experts, name).data[:1]
    assert delta_cosine([block], lambda *_: pytest.fail()) == pytest.approx(1, abs=1e-6)


def test_without_a_shared_expert_it_is_from_the_start(tmp_path: Path) -> None:
    block = block_of(tmp_path, "llama", CONFIG.model_copy(update={"shared_expert": False}))
    start = {name: item.detach()[0] for name, item in block.experts.named_parameters()}
    assert delta_cosine([block], lambda _, name: start[name]) is None  # the first expert has not moved
    shifted = {name: item - 100 for name, item in start.items()}
    assert delta_cosine([block], lambda _, name: shifted[name]) == pytest.approx(1, abs=1e-3)
