"""Families outside the table, through all stages: upcycle, sft, mix, merge, generate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.factories import FOUND_CONFIGS, VOCABULARY, dense_model, each_family
from xft_core.data.packing import PackedRows
from xft_core.data.rows import Rows, load_rows
from xft_core.mixing.coefficients import load_coefficients
from xft_core.models.discovery import family_of
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.recipe.sections import DataConfig, MergeConfig, SftConfig, UpcycleConfig
from xft_core.stages.configs import MergeStage, MixStage, PrepareStage, SftStage, UpcycleStage
from xft_core.stages.run import run_stage
from xft_core.training.held_out import held_out_loss, row_losses
from xft_core.training.response_loss import response_loss

UPCYCLE = UpcycleConfig(num_experts=4, num_experts_per_tok=3)
SFT = SftConfig(
    batch_size=4, micro_batch_size=2, learning_rate=1e-2, max_steps=3, warmup_steps=0, precision="fp32", optimizer="adamw",
    max_grad_norm=1.0)
MIX = MergeConfig(batch_size=4, micro_batch_size=2, precision="fp32", learning_rate=0.2, epochs=1)
FAMILIES = each_family(FOUND_CONFIGS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare rows; one set suits every tiny model, because all have the same tokenizer."""
    root = tmp_path_factory.mktemp("found")
    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(24)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=6)
    run_stage(PrepareStage(output=root / "data", model=str(dense_model(root / "dense")), data=config))
    return root / "data"


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    logits: torch.Tensor = model(input_ids=ids).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_found_family_goes_through_all_stages(family: str, tmp_path: Path, data: Path) -> None:
    dense = dense_model(tmp_path / "dense", family)
    run_stage(UpcycleStage(output=tmp_path / "moe", model=str(dense), upcycle=UPCYCLE))
    expected = logits_of(load_model(dense, torch.float32))
    assert (logits_of(load_model(tmp_path / "moe", torch.float32)) - expected).abs().max() <= 1e-5
    for name, source in (("tuned", tmp_path / "moe"), ("tuned-dense", dense)):
        metrics = run_stage(SftStage(output=tmp_path / name, model=str(source), data=data, sft=SFT)).manifest.metrics
        assert metrics["held_out_nll"] < metrics["held_out_nll_before"], name
    run_stage(MixStage(output=tmp_path / "mixed", model=str(tmp_path / "tuned"), data=data, merge=MIX))
    merged = run_stage(MergeStage(
        output=tmp_path / "merged", model=str(tmp_path / "tuned"), coefficients=tmp_path / "mixed", data=data,
        precision="fp32"))
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with CheckpointReader(dense) as before, CheckpointReader(tmp_path / "merged") as after:
        assert before.names() == after.names()
        assert all(before.shape(name) == after.shape(name) for name in before.names())
        assert sum(not torch.equal(before.get(name), after.get(name)) for name in before.names()) > len(before.names()) / 2
    assert torch.equal(logits_of(model.eval()), logits_of(load_model(tmp_path / "merged", torch.float32)))
    assert merged.manifest.metrics["held_out_nll"] == pytest.approx(mean_loss(model, load_rows(data, "held_out")), abs=1e-5)
    assert load_coefficients(tmp_path / "mixed").shape == (2, 4)
    for directory in ("tuned", "merged"):
        prompt = torch.tensor([[2, 2, 5, 6, 7], [8, 9, 10, 11, 12]])
        answers = load_model(tmp_path / directory, torch.float32).generate(
            input_ids=prompt, attention_mask=(prompt != 2).long(), max_new_tokens=4, do_sample=False, pad_token_id=2)
        assert answers.shape[1] > prompt.shape[1]


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: Rows) -> float:
    """Return nats per response token, by transformers' own loss, row by row."""
    total, tokens = 0.0, 0
    for index in range(len(rows)):
        input_ids, prompt_length = rows[index]
        labels = input_ids.clone().long()
        labels[:prompt_length] = -100
        count = len(labels) - prompt_length
        total, tokens = total + float(model(input_ids=input_ids[None].long(), labels=labels[None]).loss) * count, tokens + count
    return total / tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_packed_rows_is_that_of_each_alone(family: str, tmp_path: Path, data: Path) -> None:
    """Covers dense and upcycled models, and rows longer than the smallest block of attention by example."""
    dense = dense_model(tmp_path / "dense", family, max_position_embeddings=1024)
    run_stage(UpcycleStage(output=tmp_path / "moe", model=str(dense), upcycle=UPCYCLE))
    rows = load_rows(data, "train")
    assert max(rows.lengths()) > 64
    for directory in (dense, tmp_path / "moe"):
        model = load_model(directory, torch.float64)
        alone = row_losses(model, rows)
        assert held_out_loss(model, rows).nll == pytest.approx(
            sum(row.nll for row in alone) / sum(row.tokens for row in alone), abs=1e-6)
        packed = PackedRows(rows, 3 * max(rows.lengths()), packing=family_of(model.config).packs)
        assert (len(packed) < len(rows)) == family_of(model.config).packs
        batch = packed.collate([packed[index] for index in range(len(packed))])
        assert float(response_loss(model, batch).detach()) == pytest.approx(sum(row.nll for row in alone), rel=1e-6)


@pytest.mark.parametrize(("family", "changes"), [
    ("falcon", {"alibi": True}), ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}), ("granite", {"mlp_bias": True})])
def test_other_forms_of_a_family_keep_logits_and_loss(family: str, changes: dict[str, Any], tmp_path: Path, data: Path) -> None:
    dense = dense_model(tmp_path / "dense", family, **changes)
    run_stage(UpcycleStage(output=tmp_path / "moe", model=str(dense), upcycle=UPCYCLE))
    model, rows = load_model(tmp_path / "moe", torch.float32), load_rows(data, "held_out")
    assert (logits_of(model) - logits_of(load_model(dense, torch.float32))).abs().max() <= 1e-5
    plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    assert held_out_loss(model, rows).nll == pytest.approx(mean_loss(plain, rows), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_dropout_of_the_ffn_is_that_of_the_dense_model(family: str, tmp_path: Path) -> None:
    """With probability 1 the mixture's output is zero, too, and the residual stays."""
    name = {"gpt2": "resid_pdrop", "bloom": "hidden_dropout"}[family]
    changes: dict[str, Any] = {name: 1.0}
    dense = dense_model(tmp_path / "dense", family, **changes)
    run_stage(UpcycleStage(output=tmp_path / "moe", model=str(dense), upcycle=UPCYCLE))
    model = load_model(tmp_path / "moe", torch.float32).train()
    row = family_of(model.config)
    block = model.get_submodule(row.block_name(0))
    assert block.experts.dropout == 1.0
    x_BSD, residual_BSD = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    if row.adds_residual:
        assert torch.equal(block(x_BSD, residual_BSD), residual_BSD)
    else:
        assert not block(x_BSD).any()
