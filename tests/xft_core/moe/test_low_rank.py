"""Low-rank experts compared with experts whose full weights are built: values and gradients."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import xft_core.moe.mixed_hidden as mixed_hidden_module
from tests.factories import dense_model
from xft_core.families import FAMILIES, Family
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.experts import MoeBlock
from xft_core.moe.low_rank import LowRankExperts
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle

NUM_EXPERTS, RANK = 5, 3


@pytest.fixture(scope="module", params=["llama", "phi3", "starcoder2", "gpt_neox"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def block(family: str, tmp_path_factory: pytest.TempPathFactory) -> MoeBlock:
    """Create four routed experts in which no part is zero."""
    root = tmp_path_factory.mktemp(family)
    dense_model(root / "dense", family)
    (root / "moe").mkdir()
    upcycle(root / "dense", root / "moe", UpcycleConfig(num_experts=NUM_EXPERTS, num_experts_per_tok=4, expert_rank=RANK), 0)
    found = moe_blocks(load_model(root / "moe", torch.float32))[0]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found


def one_expert(block: MoeBlock, family: Family, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
    """Return E_i(x) with the full weights W_s + (16 / r) B_i A_i; expert -1 is W_s."""
    base, experts = block.shared_expert, block.experts
    assert base is not None and isinstance(experts, LowRankExperts)

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        linear = getattr(base, name)
        if expert < 0:
            return F.linear(x, linear.weight, linear.bias)
        weight = linear.weight + 16 / RANK * getattr(experts, f"{name}_b")[expert] @ getattr(experts, f"{name}_a")[expert]
        return F.linear(x, weight, None if linear.bias is None else linear.bias + getattr(experts, f"{name}_bias")[expert])

    wide = torch.cat([layer(name, x_TD) for name in family.up], dim=-1)
    hidden = experts.act_fn(wide.chunk(2, -1)[0]) * wide.chunk(2, -1)[1] if family.gated else experts.act_fn(wide)
    return layer(family.down, hidden)


def batch(tokens: int, dtype: torch.dtype, with_shared: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens, two of four experts for each (the last gets no tokens) and optionally W_s, and their weights."""
    generator = torch.Generator().manual_seed(tokens)
    index_TK = torch.rand(tokens, NUM_EXPERTS - 2, generator=generator).argsort(dim=1)[:, :2]
    if with_shared:
        index_TK = torch.cat([index_TK, torch.full((tokens, 1), -1)], dim=1)
    return (torch.randn(tokens, 32, generator=generator).to(dtype), index_TK,
            torch.rand(index_TK.shape, generator=generator).to(torch.promote_types(dtype, torch.float32)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize(("tokens", "with_shared"), [(1, True), (37, False), (64, True)])
def test_values_and_gradients_are_those_of_experts_whose_weights_are_made(
        tokens: int, with_shared: bool, dtype: torch.dtype, tolerance: float, block: MoeBlock, family: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerances are relative to the largest value. The tokens fill several blocks."""
    monkeypatch.setattr(mixed_hidden_module, "BLOCK_ELEMENTS", 10 * 3 * 48)
    found: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    for results, precision in ((found, dtype), (wanted, torch.float64)):
        block.to(precision)
        x_TD, index_TK, weight_TK = batch(tokens, dtype, with_shared)
        x_TD, weight_TK = x_TD.to(precision).requires_grad_(), weight_TK.to(
            torch.promote_types(precision, torch.float32)).requires_grad_()
        if results is found:
            y_TD = block.experts(x_TD, index_TK, weight_TK)
        else:
            outputs_TED = torch.stack([one_expert(block, FAMILIES[family], e, x_TD) for e in (0, 1, 2, 3, -1)], dim=1)
            y_TD = (outputs_TED.gather(1, (index_TK % 5)[..., None].expand(-1, -1, 32)) * weight_TK[..., None]).sum(1)
        leaves = [x_TD, weight_TK, *(p for name, p in block.named_parameters() if not name.startswith("router"))]
        slope_TD = torch.linspace(0.5, 1.5, y_TD.numel()).view_as(y_TD)
        gradients = torch.autograd.grad((y_TD * slope_TD).sum(), leaves)
        results += [y_TD.detach().double(), *(gradient.double() for gradient in gradients)]
    block.to(torch.float32)
    for mine, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 0
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_outputs_are_those_of_every_expert(block: MoeBlock, family: str) -> None:
    block.double()
    x_TD = torch.randn(7, 32, dtype=torch.float64)
    outputs_RTD = block.experts.outputs_RTD(x_TD)
    wanted_RTD = torch.stack([one_expert(block, FAMILIES[family], expert, x_TD) for expert in range(NUM_EXPERTS - 1)])
    block.float()
    assert outputs_RTD.shape == (NUM_EXPERTS - 1, 7, 32)
    assert (outputs_RTD - wanted_RTD).abs().max() <= 1e-12 * wanted_RTD.abs().max()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(3)))
def test_the_order_of_slots_and_slots_of_weight_zero_change_nothing(seed: int, order: list[int], block: MoeBlock) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_TD, (_, index_TK, weight_TK) = torch.randn(9, 32, generator=generator).double(), batch(9, torch.float64, True)
    experts = block.double().experts
    y_TD = experts(x_TD, index_TK, weight_TK)
    other_TD = experts(x_TD, torch.cat([index_TK[:, order], torch.full((9, 2), 3)], 1), F.pad(weight_TK[:, order], (0, 2)))
    block.float()
    assert (y_TD - other_TD).abs().max() <= 1e-12 * y_TD.abs().max()


def test_without_a_shared_expert_the_experts_share_weights_all_the_same(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense")
    (tmp_path / "moe").mkdir()
    config = UpcycleConfig(num_experts=4, num_experts_per_tok=2, expert_rank=2, shared_expert=False)
    upcycle(tmp_path / "dense", tmp_path / "moe", config, 0)
    model = load_model(tmp_path / "moe", torch.float32)
    dense = load_model(tmp_path / "dense", torch.float32).state_dict()
    found = model.state_dict()
    assert moe_blocks(model)[0].shared_expert is None
    assert torch.equal(found["model.layers.1.mlp.base.up_proj.weight"], dense["model.layers.1.mlp.up_proj.weight"])
    assert sum("up_proj.weight" in name for name in found) == 2  # one for each layer, stored once
