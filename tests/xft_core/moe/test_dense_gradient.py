"""The router's dense gradient equals autograd's for the mixture of all experts, and the forward pass stays the same."""

from pathlib import Path

import pytest
import torch

from tests.factories import dense_model
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.experts import MoeBlock
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle

CONFIGS = [
    UpcycleConfig(num_experts=5, num_experts_per_tok=3, router_noise=False),
    UpcycleConfig(num_experts=5, num_experts_per_tok=3, router_noise=False, routing_temperature=0.3, shared_gate="token"),
    UpcycleConfig(num_experts=5, num_experts_per_tok=3, router_noise=False, normalization="none"),
    UpcycleConfig(num_experts=4, num_experts_per_tok=1, router_noise=False, shared_expert=False),
    UpcycleConfig(num_experts=5, num_experts_per_tok=5, router_noise=False, routing="top_p", target_active=2),
    UpcycleConfig(num_experts=5, num_experts_per_tok=3, router_noise=False, expert_rank=2),
    UpcycleConfig(num_experts=4, num_experts_per_tok=1, router_noise=False, expert_rank=2, shared_expert=False),
]


def block_of(root: Path, family: str, config: UpcycleConfig) -> MoeBlock:
    dense_model(root / "dense", family)
    (root / "moe").mkdir()
    upcycle(root / "dense", root / "moe", config, 0)
    block = moe_blocks(load_model(root / "moe", torch.float32))[0].train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return block


@pytest.mark.parametrize("family", ["llama", "starcoder2", "gpt2"])
@pytest.mark.parametrize("config", CONFIGS, ids=[
    "xft", "temperature and gate", "none", "one of four", "top-p", "low-rank", "low-rank base"])
def test_gradients(config: UpcycleConfig, family: str, tmp_path: Path) -> None:
    if family == "gpt2" and config.expert_rank is not None:
        pytest.skip("low-rank experts are refused where weights are transposed")
    block = block_of(tmp_path, family, config)
    x_BSD, upstream = torch.randn(2, 2, 9, 32, generator=torch.Generator().manual_seed(1))
    results = {}
    everyone = config.model_copy(update={"num_experts_per_tok": config.num_experts, "routing": "top_k"})
    for way in ("chosen", "dense", "autograd"):
        block.router.dense_gradient = way == "dense"
        block.router.upcycle = everyone if way == "autograd" else config
        if way == "autograd":
            block.router.top_p, block.experts.skips_zero_weights = None, False
        block.zero_grad()
        y_BSD = block(x_BSD)
        (y_BSD * upstream).sum().backward()
        results[way] = y_BSD.detach(), {
            name: torch.zeros_like(item) if item.grad is None else item.grad.clone() for name, item in block.named_parameters()}
    assert torch.equal(results["chosen"][0], results["dense"][0])
    for name, gradient in results["dense"][1].items():
        if name.startswith("router."):
            scale = results["autograd"][1][name].abs().max()
            assert scale > 0 and (gradient - results["autograd"][1][name]).abs().max() <= 1e-5 * scale, name
            assert not torch.allclose(gradient, results["chosen"][1][name], rtol=0.01), name
        else:  # the experts' gradients stay the same
            assert torch.equal(gradient, results["chosen"][1][name]), name


def test_one_expert_a_token_teaches_the_router_nothing_unless_the_gradient_is_dense(tmp_path: Path) -> None:
    block = block_of(tmp_path, "llama", CONFIGS[3])
    for dense in (False, True):
        block.router.dense_gradient = dense
        block.zero_grad()
        block(torch.randn(1, 9, 32)).square().sum().backward()
        assert block.router.output is not None
        moved = block.router.output.weight.grad
        assert (moved is not None and bool(moved.abs().max() > 0)) == dense


def test_the_gates_gradient_is_that_of_finite_differences(tmp_path: Path) -> None:
    block = block_of(tmp_path, "llama", CONFIGS[1]).double()
    x_BSD = torch.randn(1, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert block.router.gate is not None
    block(x_BSD).square().sum().backward()
    for parameter in (block.router.gate.weight, block.router.gate.bias):
        assert parameter.grad is not None
        step, index = 3e-3, parameter.grad.abs().argmax()  # the gate computes its sigmoid in fp32
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[index] += sign * step
                values.append(float(block(x_BSD).square().sum()))
                parameter.view(-1)[index] -= sign * step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(parameter.grad.view(-1)[index]), rel=2e-3)
