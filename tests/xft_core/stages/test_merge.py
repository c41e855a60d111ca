"""Merging writes a stock dense checkpoint. An untouched upcycled model merges back to exactly the dense weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.factories import dense_model, each_family
from tests.xft_core.stages.test_mix import grown_apart
from xft_core.errors import ArtifactError, CheckpointError
from xft_core.mixing.coefficients import load_coefficients
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.merge import merge
from xft_core.stages.upcycle import upcycle


def random_shares(num_layers: int, num_experts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.softmax(torch.randn(num_layers, num_experts, dtype=torch.float64, generator=generator), -1)


@pytest.mark.parametrize("family", each_family())
@pytest.mark.parametrize("store", ["once", "all"])
@pytest.mark.parametrize("shared_expert", [True, False])
def test_an_untouched_upcycle_merges_back_to_the_dense_weights_exactly(
        family: str, store: str, shared_expert: bool, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", family)
    for name in ("moe", "merged"):
        (tmp_path / name).mkdir()
    config = UpcycleConfig(num_experts=4, num_experts_per_tok=3, store_experts=store, shared_expert=shared_expert)
    upcycle(source, tmp_path / "moe", config, seed=0)
    merge(tmp_path / "moe", tmp_path / "merged", random_shares(2, 4))
    with CheckpointReader(source) as dense, CheckpointReader(tmp_path / "merged") as merged:
        assert dense.names() == merged.names()
        assert all(torch.equal(dense.get(name), merged.get(name)) for name in dense.names())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_equal_experts_merge_to_themselves_in_any_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """The model is large enough that sums are not exact by chance."""
    source = dense_model(tmp_path / "dense", intermediate_size=1200)
    weights = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    for name in ("moe", "merged"):
        (tmp_path / name).mkdir()
    upcycle(source, tmp_path / "moe", UpcycleConfig(num_experts=8, num_experts_per_tok=3, store_experts="all"), seed=0)
    merge(tmp_path / "moe", tmp_path / "merged", random_shares(2, 8))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(tensor.dtype == dtype and torch.equal(tensor, weights[name]) for name, tensor in merged.items())


@pytest.mark.parametrize("family", each_family())
def test_the_merged_weights_are_the_mixture(family: str, tmp_path: Path) -> None:
    """Compare it with the equation, expert by expert, and load it with transformers alone."""
    directory = grown_apart(tmp_path, family)
    (tmp_path / "merged").mkdir()
    shares = random_shares(2, 4)
    merge(directory, tmp_path / "merged", shares)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    state = model.state_dict()
    with MixtureReader(directory) as mixture:
        for layer in range(2):
            for tensor in mixture.expert_tensors(layer):
                expected = sum(float(shares[layer, e]) * tensor.of_expert(e).double() for e in range(4))
                assert list(state[tensor.name].shape) == tensor.shape
                assert (state[tensor.name].double() - expected).abs().max() <= 1e-6
                assert (tensor.of_expert(0) - tensor.of_expert(1)).abs().max() > 1e-2
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")
    batch = tokens("def f(x):", return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=2).shape[1] > batch["input_ids"].shape[1]


def test_the_merged_config_is_the_dense_one(tmp_path: Path) -> None:
    directory = grown_apart(tmp_path)
    (tmp_path / "merged").mkdir()
    merge(directory, tmp_path / "merged", random_shares(2, 4))
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == json.loads(
        (tmp_path / "dense" / "config.json").read_text())


def test_coefficients_of_another_model_are_refused(tmp_path: Path) -> None:
    directory = grown_apart(tmp_path)
    with pytest.raises(CheckpointError, match=r"2 layers of 5 experts.*2 layers of 4"):
        merge(directory, tmp_path / "merged", random_shares(2, 5))
    with pytest.raises(CheckpointError, match="dense llama model"):
        merge(tmp_path / "dense", tmp_path / "merged", random_shares(2, 4))


def test_a_directory_without_coefficients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no mixing coefficients"):
        load_coefficients(tmp_path)
