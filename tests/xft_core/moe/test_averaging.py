"""Pulling experts together follows the equation of EWA and keeps their mean. At full strength all of them become that mean."""

import pytest
import torch

from xft_core.families import Family
from xft_core.moe.averaging import averaging_share, pull_together
from xft_core.moe.experts import RoutedExperts


def experts(number: int, dtype: torch.dtype = torch.float64) -> RoutedExperts:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    dense = LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2)).to(dtype)
    made = RoutedExperts(dense, Family(), number)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def test_each_expert_moves_towards_the_mean_of_the_others() -> None:
    made = experts(5)
    before = made.down_proj.detach().clone()
    pull_together(made, 0.1)
    for index in range(5):
        others = torch.stack([before[other] for other in range(5) if other != index]).mean(0)
        assert torch.allclose(made.down_proj[index], 0.9 * before[index] + 0.1 * others, atol=1e-12)
    assert torch.allclose(made.down_proj.mean(0), before.mean(0), atol=1e-12)


def test_the_largest_share_makes_all_of_them_their_mean() -> None:
    made = experts(4)
    before = made.gate_up_proj.detach().mean(0)
    pull_together(made, 1 - 1 / 4)
    assert torch.allclose(made.gate_up_proj, before.expand_as(made.gate_up_proj), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_experts_stay_as_they_are(dtype: torch.dtype) -> None:
    made = experts(4, dtype)
    with torch.no_grad():
        made.down_proj.copy_(made.down_proj[:1].clone().expand_as(made.down_proj))
    before = made.down_proj.detach().clone()
    pull_together(made, 0.3)
    assert torch.equal(made.down_proj, before)


def test_the_share_rises_linearly_to_its_value() -> None:
    assert [averaging_share(0.01, step, 4) for step in (1, 2, 4)] == pytest.approx([0.0025, 0.005, 0.01])
