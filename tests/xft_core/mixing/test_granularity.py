"""Granularity: equal shares give the layer's results bit for bit, the gradient equals autograd's, neurons are not split."""

from pathlib import Path

import pytest
import torch

from tests.xft_core.mixing.models import mixed as mix
from tests.xft_core.mixing.models import tuned
from xft_core.data.packing import PackedRows
from xft_core.data.rows import load_rows
from xft_core.errors import RecipeError
from xft_core.mixing.coefficients import Coefficients, load_mixing
from xft_core.mixing.granularity import Granularity
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.loading import load_model
from xft_core.recipe.sections import MergeConfig
from xft_core.stages.merge import merge
from xft_core.training.response_loss import response_nll

KINDS = [("tensor", 1), ("block", 1), ("block", 5), ("column", 1)]
FAMILIES = ["llama", "phi3", "starcoder2", "gpt2"]  # three layers, fused, biases, transposed weights


def granularity(kind: str, blocks: int, mixture: MixtureReader) -> Granularity:
    return Granularity.of(MergeConfig(granularity=kind, block_count=blocks), mixture)  # type: ignore[arg-type]


def random_shares(mixture: MixtureReader, groups: int, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(
        mixture.num_layers, groups, mixture.num_experts, dtype=torch.float64, generator=generator), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_equal_shares_are_those_of_the_layer_bit_for_bit(
        kind: str, blocks: int, dtype: torch.dtype, tmp_path: Path) -> None:
    moe = tuned(tmp_path, "phi3", dtype=dtype)
    with MixtureReader(moe) as mixture:
        weight_LN = random_shares(mixture, 1)[:, 0]
        chosen = granularity(kind, blocks, mixture)
    for name, content in (("layer", Coefficients(weight_LN)), ("groups", Coefficients(chosen.repeated(weight_LN), chosen))):
        (tmp_path / name).mkdir()
        merge(moe, tmp_path / name, content)
    bytes_of = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("layer", "groups")]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_the_projected_gradient_is_that_of_autograd(kind: str, blocks: int, family: str, tmp_path: Path, root: Path) -> None:
    """In fp64, through W built neuron by neuron from all experts. The mixture itself equals that W."""
    moe = tuned(tmp_path, family)
    data = PackedRows(load_rows(root / "data", "train"), 160, packing=True)
    batch = data.collate([data[0]])
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    with MixtureReader(moe) as mixture:
        chosen = granularity(kind, blocks, mixture)
        shares = random_shares(mixture, chosen.num_groups).requires_grad_(True)
        mixed = MixedModel(mixture, torch.float64, torch.device("cpu"), chosen)
        mixed.apply(shares.detach())
        mixed.want_gradient()
        response_nll(mixed.model(**inputs).logits, batch["labels"]).backward()
        found = mixed.weight_gradient()
        tensors = {}
        neurons = 48
        for layer in range(mixture.num_layers):
            modules: list[str] = []
            for tensor in mixture.expert_tensors(layer):
                experts = torch.stack([tensor.of_expert(e).double() for e in range(4)])
                module = tensor.name.rpartition(".")[0]
                modules += [] if module in modules else [module]
                is_down = module.endswith(mixture.family.down)
                if kind == "tensor":
                    by_group = shares[layer, modules.index(module)]
                    tensors[tensor.name] = torch.tensordot(by_group, experts, 1)
                elif is_down and experts.dim() == 2:
                    tensors[tensor.name] = torch.tensordot(shares[layer].mean(0), experts, 1)
                else:
                    axis = 1 if experts.dim() == 2 else 1 + (is_down != mixture.family.transposed)
                    size = experts.shape[axis]
                    group = (torch.arange(size) % neurons) * chosen.num_groups // neurons
                    each = shares[layer, group].T  # experts, rows or columns
                    each = each[:, None] if axis == 2 else each.reshape(4, size, *[1] * (experts.dim() - 2))
                    tensors[tensor.name] = (each * experts).sum(0)
        for name, wanted in tensors.items():
            assert (mixed.model.get_parameter(name) - wanted).abs().max() < 1e-12
        logits = torch.func.functional_call(mixed.model, tensors, kwargs=inputs).logits
        expected, = torch.autograd.grad(response_nll(logits, batch["labels"]), [shares])
    found, expected = (item - item[..., :1] for item in (found, expected))  # up to a constant shared by all experts
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["tensor", "block", "column"])
def test_groups_learn_and_are_merged(kind: str, root: Path, tmp_path: Path) -> None:
    """The merged file is the model that the stage measured. coefficients.json contains the means."""
    metrics = mix(root, tmp_path / "mix", granularity=kind, uniform_penalty=1e-4 if kind == "column" else 0.0)
    assert metrics["movement_max"] > 0.01
    found = load_mixing(tmp_path / "mix")
    assert found.granularity.num_groups == {"tensor": 3, "block": 4, "column": 48}[kind]
    (tmp_path / "merged").mkdir()
    merge(root / "moe", tmp_path / "merged", found)
    model = load_model(tmp_path / "merged", torch.float32)
    with MixtureReader(root / "moe") as mixture:
        expected = MixedModel(mixture, torch.float32, torch.device("cpu"), found.granularity)
        expected.apply(found.weight)
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_one_block_is_learned_as_a_layer_is(root: Path, tmp_path: Path) -> None:
    mix(root, tmp_path / "layer")
    mix(root, tmp_path / "block", granularity="block", block_count=1)
    assert torch.equal(load_mixing(tmp_path / "block").weight[:, 0], load_mixing(tmp_path / "layer").weight)


def test_more_blocks_than_neurons_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has 48 neurons"):
        mix(root, tmp_path / "mix", granularity="block", block_count=49)
