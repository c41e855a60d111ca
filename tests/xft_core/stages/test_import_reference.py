"""A reference checkpoint is converted with the same logits, and passes through mix, merge and generate like any other."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factories import VOCABULARY
from tests.reference_model import reference_logits, reference_model
from xft_core.errors import CheckpointError
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.config import upcycle_config_of
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import read_config
from xft_core.recipe.sections import DataConfig, GenerateConfig, MergeConfig
from xft_core.stages.configs import GenerateStage, ImportReferenceStage, MergeStage, MixStage, PrepareStage
from xft_core.stages.run import run_stage
from xft_core.store.artifacts import verify

IDS_BS = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
GATES = {
    "TopKUniversalBalancedNoisyGate": ("xft", True), "TopKUniversalBalancedNoNormalizationNoisyGate": ("none", True),
    "TopKBalancedNoisyGate": ("xft", False)}


def imported(source: Path, **fields: Any) -> Path:
    output = source.with_name("imported")
    run_stage(ImportReferenceStage(output=output, model=str(source), **fields))
    return output


@torch.no_grad()
def logits_of(directory: Path) -> torch.Tensor:
    return load_model(directory, torch.float32)(input_ids=IDS_BS).logits


@pytest.mark.parametrize("gate_type", GATES)
def test_logits_are_the_references(gate_type: str, tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference", gate_type=gate_type)
    expected = reference_logits(source, IDS_BS)
    assert expected.std() > 0.1
    output = imported(source)
    assert (logits_of(output) - expected).abs().max() <= 1e-5
    upcycle = upcycle_config_of(output)
    assert (upcycle.num_experts, upcycle.num_experts_per_tok) == (4, 3)
    assert upcycle.shared_expert == GATES[gate_type][1]
    if upcycle.shared_expert:
        assert upcycle.normalization == GATES[gate_type][0]
    verify(output)


@pytest.mark.parametrize("changes", [
    {"rope_scaling": None}, {"tie_word_embeddings": True}, {"gate_add_noise": False}, {"num_experts": 2, "num_selects": 2},
    {"num_key_value_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-3}])
def test_other_configurations_of_the_reference(changes: dict[str, Any], tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference", **changes)
    output = imported(source)
    assert (logits_of(output) - reference_logits(source, IDS_BS)).abs().max() <= 1e-5
    assert upcycle_config_of(output).router_noise == changes.get("gate_add_noise", True)


def test_the_model_runs_at_10000_unless_another_base_is_asked_for(tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    assert read_config(source)["rope_theta"] == 100000.0
    assert read_config(imported(source))["dense_config"]["rope_theta"] == 10000.0
    output = tmp_path / "other"
    run_stage(ImportReferenceStage(output=output, model=str(source), rope_base=100000.0))
    assert (logits_of(output) - reference_logits(source, IDS_BS, rope_base=100000.0)).abs().max() <= 1e-5
    assert (logits_of(output) - logits_of(tmp_path / "imported")).abs().max() > 1e-3


def test_expert_0_is_the_shared_one_and_the_order_is_kept(tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    weights = load_file(source / "model.safetensors")
    names = {"gate_proj": "weight_gate", "up_proj": "weight_up", "down_proj": "weight_down"}
    with MixtureReader(imported(source)) as mixture:
        for layer in range(2):
            for tensor in mixture.expert_tensors(layer):
                for expert in range(4):
                    stem = f"model.layers.{layer}.mlp.calculator.experts.{names[tensor.name.split('.')[-2]]}"
                    assert torch.equal(tensor.of_expert(expert), weights[f"{stem}.{expert}.weight"])


def test_sharded_bf16_checkpoints_keep_their_dtype_and_drop_old_rope_buffers(tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    expected = {name: tensor.float() for name, tensor in weights.items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    shards = {name: f"model-{number % 3 + 1:05d}-of-00003.safetensors" for number, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({name: weights[name] for name in weights if shards[name] == shard}, source / shard, {"format": "pt"})
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    output = imported(source)
    assert {str(tensor.dtype) for tensor in load_file(output / "model.safetensors").values()} == {"torch.bfloat16"}
    reference_model(tmp_path / "wide")
    save_file(expected, tmp_path / "wide" / "model.safetensors", {"format": "pt"})
    assert (logits_of(output) - reference_logits(tmp_path / "wide", IDS_BS)).abs().max() <= 1e-5


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "llama"}, "is a llama model, not one of the XFT reference code"),
    ({"gate_type": "SwitchBalancedGate"}, "gate_type is 'SwitchBalancedGate'.*Known: TopKUniversalBalancedNoisyGate"),
    ({"gate_network": "linear"}, "gate_network is 'linear'.*only 'mlp'"),
    ({"gate_use_softmax": False}, "gate_use_softmax is False"),
    ({"score_scale_factor": [1.0, 2.0]}, r"score_scale_factor is \[1.0, 2.0\]"),
    ({"num_selects": 5}, "num_experts_per_tok is 5, more than num_experts"),
    ({"num_experts": None}, "num_experts Input should be a valid integer"),
    ({"num_hidden_layers": 3}, "lacks .* tensors that its config requires, for example 'model.layers.2"),
    ({"num_hidden_layers": 1}, "tensors that its config does not require, for example 'model.layers.1"),
    ({"num_experts": 5}, r"lacks .*weight_down.4.weight"),
    ({"intermediate_size": 64}, "has shape .*the config says"),
    ({"hidden_size": 31}, "does not describe a llama model"),
])
def test_what_cannot_be_imported_is_refused_before_anything_is_written(
        changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        imported(source)
    assert not (tmp_path / "imported").exists() and not any((tmp_path / "imported.partial" / "output").glob("*"))


def test_a_config_that_lacks_fields_of_the_dense_model_is_refused(tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    config = json.loads((source / "config.json").read_text())
    del config["rope_scaling"], config["rms_norm_eps"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks rms_norm_eps, rope_scaling"):
        imported(source)


def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    (source / "model.safetensors").rename(source / "pytorch_model-00001-of-00001.bin")
    with pytest.raises(CheckpointError, match=r"holds pickled weights .*safe_serialization=True"):
        imported(source)


def test_experts_of_several_dtypes_are_refused(tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.calculator.experts.weight_up.2.weight"
    save_file(weights | {name: weights[name].bfloat16()}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="of several dtypes"):
        imported(source)


@pytest.mark.slow
def test_from_the_command_line_to_a_merged_model_that_answers(tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference")
    command = [sys.executable, "-m", "xft_core", "import-reference", str(source), str(tmp_path / "moe")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "runs at RoPE base 10000, as the reference does; its config says 100000.0" in result.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert json.loads(again.stdout)["reused"] is True

    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problem = {
        "task_id": "T/0", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
        "base_input": [[1]], "plus_input": [[2]], "atol": 0, "contract": "", "test": ""}
    (tmp_path / "benchmark.jsonl").write_text(json.dumps(problem) + "\n")
    moe, data = str(tmp_path / "moe"), tmp_path / "data"
    run_stage(PrepareStage(output=data, model=moe, data=DataConfig(
        path=str(tmp_path / "data.jsonl"), max_length=160, held_out_rows=4)))
    learn = MergeConfig(batch_size=4, micro_batch_size=2, precision="fp32", learning_rate=0.2)
    mixed = run_stage(MixStage(output=tmp_path / "mix", model=moe, data=data, merge=learn)).manifest.metrics
    merged = run_stage(MergeStage(output=tmp_path / "merged", model=moe, coefficients=tmp_path / "mix", data=data))
    assert merged.manifest.metrics["held_out_nll"] == pytest.approx(mixed["held_out_nll_merged"], abs=1e-5)
    run_stage(GenerateStage(
        output=tmp_path / "samples", model=str(tmp_path / "merged"), benchmark=str(tmp_path / "benchmark.jsonl"),
        generate=GenerateConfig(max_new_tokens=4, precision="fp32")))
    samples = (tmp_path / "samples" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 1 and json.loads(samples[0])["new_tokens"] > 0
