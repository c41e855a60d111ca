"""LoRA adapters: the trained parameters, the files written, and resuming bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.factories import dense_model
from tests.xft_core.interrupted import interrupted_after
from xft_core.models.loading import load_model
from xft_core.planning.memory import training_memory
from xft_core.planning.shape import read_shape
from xft_core.recipe.sections import BaselineConfig, DataConfig, Recipe, SftConfig, UpcycleConfig
from xft_core.stages.configs import PrepareStage, SftStage, UpcycleStage
from xft_core.stages.run import run_stage
from xft_core.training.adapters import add_adapters, merge_adapters, save_adapters

LORA = SftConfig(
    epochs=2, batch_size=4, micro_batch_size=2, learning_rate=1e-2, precision="fp32", warmup_steps=0, adapter="lora",
    adapter_rank=4, adapter_alpha=8, adapter_export=True)


def moe_of(source: Path, directory: Path) -> Path:
    run_stage(UpcycleStage(output=directory, model=str(source), upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=3)))
    return directory


def randomised(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@torch.no_grad()
def test_adapters_change_nothing_at_first_and_merge_to_what_they_compute(tmp_path: Path, family: str) -> None:
    source = dense_model(tmp_path / "dense", family)
    model = load_model(source, torch.float32)
    tokens = torch.arange(10, 30)[None]
    names, before = set(model.state_dict()), model(tokens).logits
    add_adapters(model, LORA, seed=3)
    assert torch.equal(model(tokens).logits, before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert any("attn" in name or "attention" in name for name in trained) and any("mlp" in name for name in trained)
    randomised(model)
    adapted = model(tokens).logits
    assert not torch.allclose(adapted, before)
    save_adapters(model, LORA, tmp_path)
    merge_adapters(model)
    assert torch.allclose(model(tokens).logits, adapted, atol=1e-4) and set(model.state_dict()) == names
    other = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tmp_path)
    assert torch.allclose(other(tokens).logits, adapted, atol=1e-4)


def test_of_a_mixture_attention_is_adapted_and_experts_are_trained(tmp_path: Path) -> None:
    model = load_model(moe_of(dense_model(tmp_path / "dense"), tmp_path / "moe"), torch.float32)
    add_adapters(model, LORA, seed=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".lora_" in name} == {
        f"model.layers.{layer}.self_attn.{module}.lora_{side}.default.weight"
        for layer in (0, 1) for module in ("q_proj", "k_proj", "v_proj", "o_proj") for side in "AB"}
    of_experts = {name for name, _ in model.named_parameters() if ".mlp." in name}
    assert {name for name in trained if ".lora_" not in name} == of_experts


def test_a_dense_training_leaves_a_stock_model_and_its_adapters(tmp_path: Path) -> None:
    source, data = dense_model(tmp_path / "dense"), tmp_path / "data"
    run_stage(PrepareStage(output=data, model=str(source), data=DataConfig(max_rows=40, max_length=256)))
    made = tmp_path / "sft"
    metrics = run_stage(SftStage(output=made, model=str(source), data=data, sft=LORA)).manifest.metrics
    assert metrics["held_out_nll"] < metrics["held_out_nll_before"] - 0.1
    before, after = load_file(source / "model.safetensors"), load_file(made / "model.safetensors")
    assert before.keys() == after.keys()
    fixed = {name for name in before if torch.equal(before[name], after[name])}
    assert fixed == {name for name in before if not name.endswith("_proj.weight")}
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, made / "adapter")
    tokens = torch.arange(10, 30)[None]
    merged = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    assert torch.allclose(adapted(tokens).logits, merged(tokens).logits, atol=1e-4)


@pytest.mark.slow
def test_an_interrupted_training_of_adapters_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = dense_model(tmp_path / "dense"), tmp_path / "data"
    run_stage(PrepareStage(output=data, model=str(source), data=DataConfig(max_rows=30, max_length=256)))
    model = moe_of(source, tmp_path / "moe")
    sft = LORA.model_copy(update={"log_steps": 1, "checkpoint_steps": 1, "packing": False})
    stages = [SftStage(output=tmp_path / name, model=str(model), data=data, sft=sft) for name in ("resumed", "whole")]
    interrupted_after(3, stages[0], monkeypatch)
    run_stage(stages[0])
    run_stage(stages[1])
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        resumed, whole = (load_file(stage.output / name) for stage in stages)
        assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_qlora_and_what_adapters_cannot_do_are_refused_with_the_reason() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"adapter": "qlora"}, "bitsandbytes"), ({"adapter": "lora", "num_processes": 2}, "processes"),
        ({"adapter": "lora", "average": "ema"}, "earlier steps"), ({"adapter": "lora", "merge_at": "best"}, "earlier steps")]
    for changes, reason in refused:
        with pytest.raises(ValidationError, match=reason):
            SftConfig(**changes)
    with pytest.raises(ValidationError, match="4-bit"):
        BaselineConfig(adapter="qlora")
    with pytest.raises(ValidationError, match=r"baseline\.average"):
        Recipe(sft=SftConfig(adapter="lora"), baseline=BaselineConfig(average="ema"))
    with pytest.raises(ValidationError, match="experts_from"):
        Recipe(sft=SftConfig(adapter="lora"), upcycle=UpcycleConfig(experts_from="branches"))


def test_a_baseline_has_an_adapter_of_its_own_or_that_of_sft() -> None:
    adapted = SftConfig(adapter="lora")
    assert BaselineConfig().applied_to(adapted).adapter == "lora"
    assert BaselineConfig(adapter="none").applied_to(adapted).adapter == "none"
    assert BaselineConfig(adapter="lora").applied_to(SftConfig()).adapter == "lora"
    assert "adapter" not in str(SftConfig().recorded()) and "adapter" not in str(BaselineConfig().recorded())


@pytest.mark.parametrize("upcycle", [None, UpcycleConfig(num_experts=4, num_experts_per_tok=3)])
def test_a_plan_counts_what_is_trained(tmp_path: Path, upcycle: UpcycleConfig | None) -> None:
    source = dense_model(tmp_path / "dense")
    shape = read_shape(source / "config.json")
    sft = LORA.model_copy(update={"optimizer": "adamw"})
    planned = training_memory(shape, upcycle, sft, 128)
    model = load_model(source if upcycle is None else moe_of(source, tmp_path / "moe"), torch.float32)
    add_adapters(model, sft, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert planned.gradients == pytest.approx(4 * trained, rel=0.02)
    assert planned.optimizer == pytest.approx(8 * trained, rel=0.02)
    large = replace(shape, hidden_size=1024, ffn_size=4096, num_layers=24, query_size=1024, key_size=1024, vocabulary=32_000)
    full = sft.model_copy(update={"adapter": "none"})
    assert training_memory(large, upcycle, sft, 512).total < training_memory(large, upcycle, full, 512).total
