"""Statistics of experts equal those of the Mixture-of-Experts itself, in every family."""

from pathlib import Path

import pytest
import torch

from tests.factories import each_family
from tests.xft_core.stages.test_mix import grown_apart
from tests.xft_core.stages.test_mix import ready as ready_data
from xft_core.data.packing import PackedRows
from xft_core.data.rows import load_rows
from xft_core.mixing.learning import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.operators.calibration import Experts, fisher_statistics, gram_statistics
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.training.response_loss import response_loss

ready = ready_data  # a fixture


@pytest.mark.parametrize("family", each_family())
def test_fisher_information_is_that_of_autograd(family: str, ready: Path, tmp_path: Path) -> None:
    """Compare the Mixture-of-Experts' own parameters, row by row, in every family: gated, fused or not, with biases."""
    directory = grown_apart(tmp_path, family)
    rows = load_rows(ready / "data", "train")
    moe = load_model(directory, torch.float32)
    with MixtureReader(directory) as mixture:
        experts = Experts(mixture, MixedModel(mixture, torch.float32, torch.device("cpu")).model)
        found = fisher_statistics(load_model(directory, torch.float32), experts, rows, range(2), max_rows=3)
        expected: dict[str, torch.Tensor] = {}
        data = PackedRows(rows, max(rows.lengths()), packing=False)
        for row in range(3):
            moe.zero_grad()
            response_loss(moe, data.collate([[row]])).backward()
            for layer, block in enumerate(moe_blocks(moe)):
                for stacked, sources in mixture.family.expert_sources(block.experts.has_bias).items():
                    axis = 2 if mixture.family.transposed and not stacked.endswith("bias") else 1
                    parts = getattr(block.experts, stacked).grad.chunk(len(sources), dim=axis)
                    for source, routed in zip(sources, parts, strict=True):
                        name = f"{mixture.family.mlp_name(layer)}.{source}"
                        assert block.shared_expert is not None
                        shared = block.shared_expert.get_parameter(source).grad
                        every = torch.cat([shared[None], routed]).square()
                        expected[name] = expected.get(name, 0) + every
        names = {tensor.name for layer in range(2) for tensor in mixture.expert_tensors(layer)}
    fisher = found[0].fisher | found[1].fisher
    assert fisher.keys() == expected.keys() == names
    for name, information in fisher.items():
        assert information.max() > 0
        assert torch.allclose(information, expected[name], rtol=1e-3, atol=1e-6 * float(expected[name].max())), name


@pytest.mark.parametrize("family", each_family())
def test_gram_matrices_are_of_what_the_layers_are_given(family: str, ready: Path, tmp_path: Path) -> None:
    """Covers the shared expert's inputs (from hooks on its own layers), every expert's tokens and weights, and no padding."""
    directory = grown_apart(tmp_path, family)
    rows = load_rows(ready / "data", "train")
    moe = load_model(directory, torch.float32)
    with MixtureReader(directory) as mixture:
        experts = Experts(mixture, MixedModel(mixture, torch.float32, torch.device("cpu")).model)
        found = gram_statistics(moe, experts, rows, range(1, 2), max_rows=4)[1]
        inputs: dict[str, torch.Tensor] = {}
        block, data = moe_blocks(moe)[1], PackedRows(rows, max(rows.lengths()), packing=False)
        assert block.shared_expert is not None
        for name in (*mixture.family.up, mixture.family.down):
            block.shared_expert.get_submodule(name).register_forward_pre_hook(
                lambda _, given, name=name: inputs.update({name: given[0]}))
        expected: dict[str, torch.Tensor] = {}
        weight_N = torch.zeros(4, dtype=torch.float64)
        for row in range(4):
            block.keep_routing = True
            with torch.no_grad():
                response_loss(moe, data.collate([[row]]))
            routing = block.routing
            assert routing is not None
            for name, x in inputs.items():
                full = f"{mixture.family.mlp_name(1)}.{name}.weight"
                expected[full] = expected.get(full, 0) + (x * routing.weight_TK[:, -1:]).t() @ x
            weight_N.scatter_add_(0, routing.expert_index_TK.flatten(), routing.weight_TK.flatten().double())
    assert torch.allclose(found.weight_N, weight_N, rtol=1e-5)
    assert found.gram.keys() == expected.keys()
    for name, gram in found.gram.items():
        assert torch.allclose(gram[0], expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].abs().max())), name
        assert (gram[1:].flatten(1).abs().sum(1) > 0).all()
