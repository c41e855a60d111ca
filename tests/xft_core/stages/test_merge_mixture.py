"""Stock mixtures, created by transformers' own classes, merge to models that transformers loads, or a reason is given."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from xft_core.errors import CheckpointError
from xft_core.stages.configs import MergeMixtureStage
from xft_core.stages.run import run_stage

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 1, "pad_token_id": 2}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                  "shared_expert_intermediate_size": 24, "norm_topk_prob": True},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8,
                  "norm_topk_prob": True},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granitemoeshared": {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48},
}
DENSE = {"mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3", "granitemoe": "granite",
         "granitemoeshared": "granite"}


def mixture(directory: Path, model_type: str, equal: bool = False, **changes: Any) -> Path:
    """Create a tiny random mixture. With ``equal``, all its experts are equal, including the shared one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SIZES | MIXTURES.get(model_type, {}) | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    if equal:
        weights = load_file(directory / "model.safetensors")
        for name in weights:
            if ".experts." in name:
                weights[name] = weights[_first(name)].clone()
            elif "shared_expert." in name:
                weights[name] = weights[name.replace("shared_expert.", "experts.0.")].clone()
            elif "block_sparse_moe." in name and weights[name].dim() == 3:
                weights[name] = weights[name][:1].expand_as(weights[name]).clone()
                beside = name.replace("block_sparse_moe", "shared_mlp")
                if beside in weights:
                    weights[beside] = weights[name][0].clone()
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def _first(name: str) -> str:
    head, tail = name.split(".experts.")
    return f"{head}.experts.0.{tail.partition('.')[2]}"


def merge(source: Path, output: Path, **fields: Any) -> dict[str, Any]:
    return run_stage(MergeMixtureStage(output=output, model=str(source), **fields)).manifest.metrics


def loaded(directory: Path) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "granitemoe", "granitemoeshared"])
def test_a_mixture_of_equal_experts_merges_to_a_model_that_computes_the_same(model_type: str, tmp_path: Path) -> None:
    source = mixture(tmp_path / "moe", model_type, equal=True)
    metrics = merge(source, tmp_path / "dense")
    dense, moe = loaded(tmp_path / "dense"), loaded(source)
    assert dense.config.model_type == DENSE[model_type]
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.allclose(dense(tokens).logits, moe(tokens).logits, rtol=0, atol=1e-4)
    assert metrics["expert_cosine_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["num_experts"] == (5 if model_type == "granitemoeshared" else 4)


def test_the_dense_model_is_loaded_without_rounding_whatever_dtype_the_config_names(tmp_path: Path) -> None:
    source = mixture(tmp_path / "moe", "mixtral")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    merge(source, tmp_path / "dense")
    stored = load_file(tmp_path / "dense" / "model.safetensors")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto").state_dict()
    assert all(torch.equal(found[name], stored[name]) for name in stored)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_the_merged_weights_are_the_mean_and_transformers_loads_them(
        model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = mixture(tmp_path / "moe", model_type)
    with caplog.at_level(logging.WARNING):
        metrics = merge(source, tmp_path / "dense", shared_expert_weight=0.4)
    assert loaded(tmp_path / "dense").config.model_type == DENSE[model_type]
    assert metrics["expert_cosine_mean"] < 0.9 and "Experts that come from one model are above 0.9" in caplog.text
    moe, dense = load_file(source / "model.safetensors"), load_file(tmp_path / "dense" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    if model_type.startswith("granite"):
        experts = moe["model.layers.1.block_sparse_moe.output_linear.weight"].double()
        gate = moe["model.layers.1.block_sparse_moe.input_linear.weight"].double().mean(0)[:48]
    else:
        module, down, first = ("block_sparse_moe", "w2", "w1") if model_type == "mixtral" else ("mlp", "down_proj", "gate_proj")
        experts, gates = (torch.stack([moe[f"model.layers.1.{module}.experts.{e}.{layer}.weight"].double() for e in range(4)])
                          for layer in (down, first))
        gate = gates.mean(0)
    layer = "model.layers.1"
    shared = moe.get(f"{layer}.mlp.shared_expert.down_proj.weight", moe.get(f"{layer}.shared_mlp.output_linear.weight"))
    mean = experts.mean(0) if shared is None else 0.4 * shared.double() + 0.6 * experts.mean(0)
    scale = 2 if model_type == "granitemoeshared" else 1
    assert torch.allclose(dense[name].double(), scale * mean, rtol=0, atol=1e-6)
    if shared is None:
        assert torch.allclose(dense["model.layers.1.mlp.gate_proj.weight"].double(), gate, rtol=0, atol=1e-6)
    assert torch.equal(dense["model.embed_tokens.weight"], moe["model.embed_tokens.weight"])


@pytest.mark.parametrize(("model_type", "changes", "reason"), [
    ("olmoe", {"num_experts": 4}, "no dense family of transformers does both"),
    ("qwen2_moe", {"shared_expert_intermediate_size": 48}, "The shared expert has 48 neurons, the other experts have 24"),
    ("granitemoeshared", {"shared_intermediate_size": 64}, "The shared expert has 64 neurons, the other experts have 48"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "Some layers are dense"),
    ("llama", {}, "No dense family is known for models of type 'llama'"),
])
def test_others_are_refused_with_the_reason(model_type: str, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        merge(mixture(tmp_path / "moe", model_type, **changes), tmp_path / "dense")


def test_weights_that_sum_to_no_fixed_number_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        merge(mixture(tmp_path / "moe", "qwen2_moe", norm_topk_prob=False), tmp_path / "dense")
    assert "has its own gate" in caplog.text and "norm_topk_prob is false" in caplog.text


def test_what_is_left_over_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = mixture(tmp_path / "moe", "mixtral")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.block_sparse_moe.adapter.weight"] = torch.zeros(3)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensor next to the experts of .*block_sparse_moe.adapter.weight"):
        merge(source, tmp_path / "dense")
    weights["model.extra.weight"] = weights.pop("model.layers.0.block_sparse_moe.adapter.weight")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensor would not fit the dense model: 'model.extra.weight'"):
        merge(source, tmp_path / "dense")


@pytest.mark.slow
def test_a_plan_is_printed_changed_and_used(tmp_path: Path) -> None:
    source = mixture(tmp_path / "moe", "mixtral")
    command = [sys.executable, "-m", "xft_core", "merge-mixture", str(source)]
    printed = subprocess.run([*command, "--print-plan"], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    plan = json.loads(printed.stdout)
    for group in plan["groups"]:
        group["scale"] *= 0.5 if "down_proj" in group["target"] else 1
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    by_plan = ["--plan", str(tmp_path / "plan.json")]
    done = subprocess.run([*command, str(tmp_path / "half"), *by_plan], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    merge(source, tmp_path / "dense")
    half, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "dense"))
    for name, tensor in whole.items():
        assert torch.allclose(half[name], tensor * (0.5 if "down_proj" in name else 1)), name
    assert json.loads((tmp_path / "half" / "merge_plan.json").read_text()) == plan

    plan["copied"].remove("model.norm.weight")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    refused = subprocess.run([*command, str(tmp_path / "no"), *by_plan], capture_output=True, text=True)
    assert refused.returncode == 2 and "no place for 1 tensor: 'model.norm.weight'" in refused.stderr
