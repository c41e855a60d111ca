"""Mixtures trained in a stock architecture: identity, export without arithmetic, merge, and unsupported cases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.factories import VOCABULARY, dense_model
from tests.xft_core.mixing.models import prepared, tuned
from xft_core.data.rows import load_rows
from xft_core.errors import CheckpointError
from xft_core.exports.stock import export_stock
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.delta_cosine import delta_cosine
from xft_core.recipe.sections import Recipe, SftConfig, UpcycleConfig
from xft_core.stages.configs import ExportStage, SftStage
from xft_core.stages.merge import merge
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle
from xft_core.training.held_out import held_out_loss

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("granite", "llama", {}), ("granite", "mistral", {"sliding_window": None}), ("qwen2_moe", "qwen2", {}),
    ("qwen2_moe", "qwen2", {"tie_word_embeddings": False})]


def config(normalization: str, **options: Any) -> UpcycleConfig:
    return UpcycleConfig(**({"num_experts": 4, "num_experts_per_tok": 3, "normalization": normalization} | options))


def logits(directory: Path, stock: bool = False) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory) if stock else load_model(directory, torch.float32)
    input_ids = torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=input_ids, use_cache=False).logits


@pytest.mark.parametrize(("normalization", "family", "changes"), CASES)
def test_the_untouched_mixture_is_the_dense_model(
    normalization: str, family: str, changes: dict[str, Any], tmp_path: Path,
) -> None:
    dense = dense_model(tmp_path / "dense", family, **changes)
    for name in ("moe", "stock", "merged"):
        (tmp_path / name).mkdir()
    upcycle(dense, tmp_path / "moe", config(normalization), seed=0)
    expected = logits(dense)
    assert float((logits(tmp_path / "moe") - expected).abs().max()) < 1e-5
    export_stock(tmp_path / "moe", tmp_path / "stock")
    assert float((logits(tmp_path / "stock", stock=True) - expected).abs().max()) < 1e-5
    merge(tmp_path / "moe", tmp_path / "merged", torch.full((2, 4), 0.25, dtype=torch.float64))
    weights, merged = load_file(dense / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert weights.keys() == merged.keys()
    for name, weight in weights.items():
        assert torch.allclose(merged[name], weight, rtol=1e-6, atol=0), name


@pytest.mark.parametrize(("normalization", "family"), [("granite", "llama"), ("qwen2_moe", "qwen2")])
def test_nothing_is_rounded_where_the_dense_model_has_16_bits(normalization: str, family: str, tmp_path: Path) -> None:
    path = dense_model(tmp_path / "dense", family) / "model.safetensors"
    weights = {name: weight.bfloat16() for name, weight in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    for name in ("moe", "stock", "merged"):
        (tmp_path / name).mkdir()
    upcycle(tmp_path / "dense", tmp_path / "moe", config(normalization), seed=0)
    expected = logits(tmp_path / "dense")
    assert float((logits(tmp_path / "moe") - expected).abs().max()) < 1e-5
    export_stock(tmp_path / "moe", tmp_path / "stock")
    if normalization == "granite":  # loaded in fp32, because its config.json says so
        assert float((logits(tmp_path / "stock", stock=True) - expected).abs().max()) < 1e-5
    merge(tmp_path / "moe", tmp_path / "merged", torch.full((2, 4), 0.25, dtype=torch.float64))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(merged[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(("normalization", "family", "changes"), CASES)
def test_the_export_computes_the_same_and_changes_no_number(
    normalization: str, family: str, changes: dict[str, Any], tmp_path: Path,
) -> None:
    if changes and normalization == "granite":  # the factory's mistral has a sliding window
        dense_model(tmp_path / "dense", family, **changes)
        (tmp_path / "moe").mkdir()
        upcycle(tmp_path / "dense", tmp_path / "moe", config(normalization), seed=0)
        moe = tmp_path / "moe"
    else:
        moe = tuned(tmp_path, family, normalization=normalization)
    (tmp_path / "stock").mkdir()
    export_stock(moe, tmp_path / "stock")
    assert float((logits(tmp_path / "stock", stock=True) - logits(moe)).abs().max()) < 1e-5
    ours, theirs = load_file(moe / "model.safetensors"), load_file(tmp_path / "stock" / "model.safetensors")
    left_out = [name for name in ours if ".router.noise." in name]
    assert sum(ours[name].numel() for name in ours if name not in left_out) == sum(map(torch.numel, theirs.values()))
    values = {row.numpy().tobytes() for name, tensor in theirs.items() for row in tensor.reshape(-1, tensor.shape[-1])}
    for name, tensor in ours.items():
        if name not in left_out:
            assert all(row.numpy().tobytes() in values for row in tensor.reshape(-1, tensor.shape[-1])), name


@pytest.mark.parametrize(("normalization", "family"), [("granite", "llama"), ("qwen2_moe", "qwen2")])
def test_the_stage_measures_the_export_on_held_out_rows(normalization: str, family: str, tmp_path: Path) -> None:
    moe, data = tuned(tmp_path, family, normalization=normalization), prepared(tmp_path)
    stage = ExportStage(output=tmp_path / "stock", model=str(moe), form="stock", data=data)
    metrics = run_stage(stage).manifest.metrics
    expected = held_out_loss(load_model(moe, torch.float32), load_rows(data, "held_out")).nll
    assert metrics["held_out_nll"] == pytest.approx(metrics["held_out_nll_source"], abs=1e-5)
    assert metrics["held_out_nll"] == pytest.approx(expected, abs=1e-5)
    assert metrics["same_tokens"] == 1


@pytest.mark.parametrize(("normalization", "family"), [("granite", "llama"), ("qwen2_moe", "qwen2")])
def test_experts_are_read_without_their_scale(normalization: str, family: str, tmp_path: Path) -> None:
    moe = tuned(tmp_path, family, normalization=normalization)
    stored = load_file(moe / "model.safetensors")
    of_shared, of_routed = UpcycleConfig(normalization=normalization).down_scales
    with MixtureReader(moe) as mixture:
        down = next(tensor for tensor in mixture.expert_tensors(1) if tensor.name.endswith("down_proj.weight"))
        assert torch.allclose(down.of_expert(0), stored["model.layers.1.mlp.shared_expert.down_proj.weight"] / of_shared)
        assert torch.allclose(down.of_expert(2), stored["model.layers.1.mlp.experts.down_proj"][1] / of_routed)
    blocks = moe_blocks(load_model(moe, torch.float32))
    x_TD = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        routing = blocks[1].router(x_TD)
        outputs_RTD, shared_TD = blocks[1].experts.outputs_RTD(x_TD), blocks[1]._shared(x_TD)
        weight_TN = torch.zeros(5, 4).scatter(1, routing.expert_index_TK, routing.weight_TK)
        expected = torch.einsum("tn,ntd->td", weight_TN, torch.cat([shared_TD[None], outputs_RTD]))
        assert torch.allclose(blocks[1](x_TD[None])[0], expected, atol=1e-6)
    if normalization == "granite":
        assert torch.allclose(weight_TN[:, 0], torch.full((5,), 0.75)) and torch.allclose(weight_TN.sum(1), torch.ones(5))
    found = delta_cosine(blocks, lambda layer, name: torch.zeros(()))
    assert found is not None and abs(found) < 0.7


@pytest.mark.parametrize(("normalization", "family"), [("granite", "llama"), ("qwen2_moe", "qwen2")])
def test_it_trains_and_is_exported_as_trained(normalization: str, family: str, tmp_path: Path) -> None:
    moe = tuned(tmp_path, family, normalization=normalization)
    data = prepared(tmp_path)
    sft = SftConfig(epochs=1, batch_size=8, micro_batch_size=4, precision="fp32", router_gradient="dense", learning_rate=1e-3)
    metrics = run_stage(SftStage(output=tmp_path / "sft", model=str(moe), data=data, sft=sft)).manifest.metrics
    assert metrics["held_out_nll"] < metrics["held_out_nll_before"]
    (tmp_path / "stock").mkdir()
    export_stock(tmp_path / "sft", tmp_path / "stock")
    assert float((logits(tmp_path / "stock", stock=True) - logits(tmp_path / "sft")).abs().max()) < 1e-5
    before, after = (load_file(path / "model.safetensors") for path in (moe, tmp_path / "sft"))
    for name in ("hidden.weight", *(("gate.weight",) if normalization == "qwen2_moe" else ())):
        assert not torch.equal(before[f"model.layers.0.mlp.router.{name}"], after[f"model.layers.0.mlp.router.{name}"])


@pytest.mark.parametrize(("normalization", "family", "changes", "reason"), [
    ("granite", "qwen2", {}, "for models of type llama and mistral"),
    ("qwen2_moe", "llama", {}, "for models of type qwen2"),
    ("granite", "mistral", {}, "a sliding window"),
    ("granite", "llama", {"mlp_bias": True}, "biases in its FFNs"),
    ("granite", "llama", {"head_dim": 16}, "a head size other than"),
    ("granite", "llama", {"hidden_act": "gelu"}, "the activation gelu"),
])
def test_a_model_that_does_not_fit_is_refused(
    normalization: str, family: str, changes: dict[str, Any], reason: str, tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        upcycle(dense_model(tmp_path / "dense", family, **changes), tmp_path / "moe", config(normalization), seed=0)


@pytest.mark.parametrize("options", [
    {"shared_expert": False}, {"router": "hashed"}, {"routing": "top_p", "target_active": 2}, {"shared_gate": "token"},
    {"expert_rank": 2}, {"routing_temperature": 0.5}])
def test_what_the_architecture_has_not_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="granite"):
        config("granite", **options)


def test_a_bias_of_the_router_is_refused() -> None:
    with pytest.raises(ValidationError, match="whose router has no bias"):
        Recipe(upcycle=config("granite"), sft=SftConfig(balance="bias"))


def test_another_routing_has_no_stock_architecture(tmp_path: Path) -> None:
    (tmp_path / "stock").mkdir()
    with pytest.raises(CheckpointError, match="no stock architecture has"):
        export_stock(tuned(tmp_path), tmp_path / "stock")
