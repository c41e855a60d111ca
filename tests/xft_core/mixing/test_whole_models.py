"""Weighted means of whole models: one-hot and equal weights bit for bit, the formula in between, tied embeddings, refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.factories import dense_model, each_family
from xft_core.errors import CheckpointError
from xft_core.mixing.whole_models import average_models
from xft_core.models.loading import load_model
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle


def averaged(target: Path, sources: dict[str, Path], weights: dict[str, float]) -> dict[str, torch.Tensor]:
    target.mkdir()
    average_models(sources, weights, target)
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("family", each_family())
def test_base_and_tuned_are_the_ends_of_the_way_between_them(family: str, tmp_path: Path) -> None:
    sources = {name: dense_model(tmp_path / name, family, seed) for seed, name in enumerate(("base", "tuned"))}
    ends = {name: load_model(directory, torch.float32).state_dict() for name, directory in sources.items()}
    for share, end in ((0.0, "base"), (1.0, "tuned")):
        averaged(tmp_path / end[::-1], sources, {"base": 1 - share, "tuned": share})
        found = load_model(tmp_path / end[::-1], torch.float32).state_dict()
        assert all(torch.equal(found[name], ends[end][name]) for name in found), end
    averaged(tmp_path / "middle", sources, {"base": 0.3, "tuned": 0.7})
    found = load_model(tmp_path / "middle", torch.float32).state_dict()
    for name in found:
        assert torch.allclose(found[name], ends["base"][name] + 0.7 * (ends["tuned"][name] - ends["base"][name]), atol=1e-6)
    AutoModelForCausalLM.from_pretrained(tmp_path / "middle")


def test_equal_models_average_to_themselves_in_any_dtype(tmp_path: Path) -> None:
    source = dense_model(tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    for number, directory in enumerate((source, tmp_path / "bf16")):
        names = ["a", "b", "c"]
        found = averaged(tmp_path / f"mean{number}", dict.fromkeys(names, directory), dict.fromkeys(names, 1 / 3))
        expected = load_file(directory / "model.safetensors")
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_tied_embeddings_stay_tied_whichever_of_them_is_stored(tmp_path: Path) -> None:
    sources = {name: dense_model(tmp_path / name, "qwen2", seed) for seed, name in enumerate(("a", "b"))}
    averaged(tmp_path / "mean", sources, {"a": 0.5, "b": 0.5})
    model = load_model(tmp_path / "mean", torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_models_of_other_forms_are_refused(tmp_path: Path) -> None:
    small, large = dense_model(tmp_path / "small"), dense_model(tmp_path / "large", intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"Models of different forms cannot be averaged: 'model\.layers\.0\.mlp"):
        averaged(tmp_path / "mean", {"a": small, "b": large}, {"a": 0.5, "b": 0.5})
    (tmp_path / "moe").mkdir()
    upcycle(small, tmp_path / "moe", UpcycleConfig(num_experts=3, num_experts_per_tok=2), seed=0)
    with pytest.raises(CheckpointError, match=r"is a Mixture-of-Experts\. Only dense models are averaged"):
        averaged(tmp_path / "moe_mean", {"a": tmp_path / "moe"}, {"a": 1.0})


def test_the_mean_is_loaded_without_rounding_whatever_dtype_the_sources_config_names(tmp_path: Path) -> None:
    sources = {name: dense_model(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))}
    for directory in sources.values():
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    stored = averaged(tmp_path / "mean", sources, {"a": 0.3, "b": 0.7})
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "mean", dtype="auto").state_dict()
    assert all(torch.equal(found[name], stored[name]) for name in stored)
