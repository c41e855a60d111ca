"""Fusion of experts: the dense model at the start, dense SFT if one expert has the full share, merged without loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.factories import dense_model, each_family
from tests.xft_core.stages.test_sft import changed, ready  # noqa: F401  (a fixture)
from xft_core.errors import RecipeError
from xft_core.models.loading import load_model
from xft_core.moe.fusion import FusionBlock
from xft_core.recipe.load import parse
from xft_core.recipe.sections import MergeConfig, Recipe, UpcycleConfig
from xft_core.stages.configs import MergeStage, MixStage, SftStage
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle

FUSION = UpcycleConfig(num_experts=3, num_experts_per_tok=1, shared_expert=False, mode="fusion")


def fused(directory: Path, dense: Path) -> Path:
    directory.mkdir()
    upcycle(dense, directory, FUSION, seed=0)
    return directory


@pytest.mark.parametrize("family", each_family())
def test_upcycling_is_the_identity_whatever_the_shares(family: str, tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", family)
    model = load_model(fused(tmp_path / "moe", tmp_path / "dense"), torch.float64)
    expected = load_model(tmp_path / "dense", torch.float64)
    tokens = torch.arange(12)[None]
    logits = expected(input_ids=tokens).logits
    assert sum(isinstance(module, FusionBlock) for module in model.modules()) == 2
    assert torch.allclose(model(input_ids=tokens).logits, logits, atol=1e-12)
    for module in model.modules():  # only these modules: dropout elsewhere would change the result
        if isinstance(module, FusionBlock):
            monkey = module.train()
            monkey.experts.dropout = 0.0
    assert torch.allclose(model(input_ids=tokens).logits, logits, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "phi3", "starcoder2"])
def test_one_expert_with_all_of_the_share_is_dense_sft_bit_for_bit(
        family: str, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    dense_model(tmp_path / "dense", family)
    fused(tmp_path / "moe", tmp_path / "dense")
    monkeypatch.setattr(FusionBlock, "shares", lambda self: [0.0, 1.0, 0.0])
    config = changed(max_steps=4)
    for name in ("dense", "moe"):
        run_stage(SftStage(output=tmp_path / f"tuned_{name}", model=str(tmp_path / name), data=ready / "data", sft=config))
    dense, moe = (load_model(tmp_path / f"tuned_{name}", torch.float32) for name in ("dense", "moe"))
    tokens = torch.arange(12)[None]
    assert torch.equal(dense(input_ids=tokens).logits, moe(input_ids=tokens).logits)
    start = load_model(tmp_path / "dense", torch.float32)
    assert not torch.equal(start(input_ids=tokens).logits, dense(input_ids=tokens).logits)


def test_experts_grow_apart_and_merge_without_loss(ready: Path, tmp_path: Path) -> None:  # noqa: F811
    fused(tmp_path / "moe", ready / "dense")
    tuned = run_stage(SftStage(
        output=tmp_path / "tuned", model=str(tmp_path / "moe"), data=ready / "data", sft=changed())).manifest
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    experts = weights["model.layers.0.mlp.experts.down_proj"]
    assert (experts[0] - experts[1]).abs().max() > 1e-4
    assert not any(".router." in name for name in weights)
    merge = MergeConfig(method="mean", precision="fp32")  # type: ignore[arg-type]
    run_stage(MixStage(output=tmp_path / "mix", model=str(tmp_path / "tuned"), data=ready / "data", merge=merge))
    merged = run_stage(MergeStage(
        output=tmp_path / "merged", model=str(tmp_path / "tuned"), coefficients=tmp_path / "mix", data=ready / "data")).manifest
    assert merged.metrics["held_out_nll"] == pytest.approx(tuned.metrics["held_out_nll"], abs=1e-6)
    with pytest.raises(RecipeError, match="which merges to their mean"):
        run_stage(MixStage(output=tmp_path / "x", model=str(tmp_path / "tuned"), data=ready / "data"))


@pytest.mark.parametrize(("changes", "message"), [
    (["upcycle.mode=fusion"], "set shared_expert to false"),
    (["upcycle.mode=fusion", "upcycle.shared_expert=false"], "set merge.method to ewa"),
])
def test_what_does_not_fit_a_fusion_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(Recipe, {}, changes)


def test_mean_is_another_name_of_ewa_with_the_same_record() -> None:
    assert parse(Recipe, {}, ["merge.method=mean"]).recorded() == parse(Recipe, {}, ["merge.method=ewa"]).recorded()
