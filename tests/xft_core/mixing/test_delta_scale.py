"""gamma: 1 needs no base and gives the mixture's bits, 0 gives the base's, and its gradient equals the difference quotient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.xft_core.mixing.models import mix_stage, tuned
from tests.xft_core.mixing.models import mixed as mix
from xft_core.data.rows import load_rows
from xft_core.errors import ArtifactError, CheckpointError, RecipeError
from xft_core.mixing.coefficients import Coefficients, load_coefficients, load_mixing
from xft_core.mixing.delta_scale import scaled
from xft_core.mixing.learning import objective_now
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.objective import nll
from xft_core.recipe.sections import MergeConfig, Recipe
from xft_core.recipe.steps import pipeline_steps
from xft_core.stages.configs import MergeStage
from xft_core.stages.merge import merge
from xft_core.stages.run import run_stage, stage_key

SHARES = torch.tensor([[0.75, 0.05, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)


def merged(moe: Path, target: Path, gamma: float, scope: str, base: Path | None) -> dict[str, torch.Tensor]:
    target.mkdir()
    gamma_L = torch.full((2,), gamma, dtype=torch.float64)
    merge(moe, target, Coefficients(SHARES, delta_scale_L=gamma_L, outside_scale=gamma if scope == "model" else 1.0), base)
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["ffn", "model"])
def test_the_limits_are_the_mixture_and_the_base_bit_for_bit(dtype: torch.dtype, scope: str, tmp_path: Path) -> None:
    moe = tuned(tmp_path, "qwen2", dtype=dtype)  # tied embeddings
    (tmp_path / "plain").mkdir()
    merge(moe, tmp_path / "plain", SHARES)
    plain, base = load_file(tmp_path / "plain" / "model.safetensors"), load_file(tmp_path / "dense" / "model.safetensors")
    for name, with_base in (("one", None), ("one with the base", tmp_path / "dense")):
        found = merged(moe, tmp_path / name, 1.0, scope, with_base)
        assert all(torch.equal(found[key], plain[key]) for key in plain)
    found = merged(moe, tmp_path / "zero", 0.0, scope, tmp_path / "dense")
    assert found.keys() == base.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, base[key] if scope == "model" or ".mlp." in key else plain[key]), key
        assert not torch.equal(plain[key], base[key])


@pytest.mark.parametrize("scope", ["ffn", "model"])
def test_between_the_limits_it_is_the_equation(scope: str, tmp_path: Path) -> None:
    moe = tuned(tmp_path)
    (tmp_path / "plain").mkdir()
    merge(moe, tmp_path / "plain", SHARES)
    plain, base = load_file(tmp_path / "plain" / "model.safetensors"), load_file(tmp_path / "dense" / "model.safetensors")
    for key, tensor in merged(moe, tmp_path / "some", 0.7, scope, tmp_path / "dense").items():
        gamma = 0.7 if scope == "model" or ".mlp." in key else 1.0
        assert torch.allclose(tensor, base[key] + gamma * (plain[key] - base[key]), rtol=0, atol=1e-6), key


def test_the_gradient_is_the_difference_quotient(root: Path) -> None:
    """Checks gamma in each FFN and outside them, in fp64, on real rows."""
    rows = load_rows(root / "data", "reserved")
    gamma_L = torch.tensor([0.8, 0.9], dtype=torch.float64, requires_grad=True)
    outside = 0.85
    with MixtureReader(root / "moe", root / "dense") as mixture:
        mixed = MixedModel(mixture, torch.float64, torch.device("cpu"))

        def loss(gammas: torch.Tensor, scale: float) -> float:
            mixed.apply(scaled(SHARES, gammas.detach()), scale)
            return objective_now(mixed, rows, 4, nll)

        mixed.apply(scaled(SHARES, gamma_L.detach()), outside)
        objective_now(mixed, rows, 4, nll, gradient=True, outside=True)
        found_L, = torch.autograd.grad(scaled(SHARES, gamma_L), [gamma_L], mixed.weight_gradient())
        found_outside = float(mixed.outside_gradient())
        step = 1e-3  # norms are in fp32, whatever the model's dtype
        for layer in range(2):
            change = torch.eye(2, dtype=torch.float64)[layer] * step
            expected = (loss(gamma_L + change, outside) - loss(gamma_L - change, outside)) / (2 * step)
            assert float(found_L[layer]) == pytest.approx(expected, rel=1e-3)
        expected = (loss(gamma_L, outside + step) - loss(gamma_L, outside - step)) / (2 * step)
        assert found_outside == pytest.approx(expected, rel=1e-3, abs=1e-6) and abs(expected) > 1e-3


@pytest.mark.parametrize("changes", [
    {"delta_scale": 0.7}, {"delta_scale": 0.7, "delta_scale_scope": "model", "method": "uniform"},
    {"delta_scale": None}, {"delta_scale": None, "delta_scale_scope": "model"},
    {"delta_scale": None, "granularity": "tensor"}])
def test_the_stages_agree_on_it(changes: dict[str, Any], root: Path, tmp_path: Path) -> None:
    """merge writes the model that mix measured, and measures the same loss."""
    metrics = mix(root, tmp_path / "mix", base=True, **changes)
    assert metrics["delta_scale_mean"] == pytest.approx(changes["delta_scale"] or metrics["delta_scale_mean"])
    assert metrics["held_out_nll_unscaled"] != metrics["held_out_nll_merged"]
    assert ("delta_scale_moved" in metrics) == (changes["delta_scale"] is None)
    if changes["delta_scale"] is None:
        assert abs(metrics["delta_scale_mean"] - 1) > 0.01
        assert metrics["held_out_nll_merged"] < metrics["held_out_nll_uniform"]
    stage = MergeStage(output=tmp_path / "merged", model=str(root / "moe"), coefficients=tmp_path / "mix", data=root / "data")
    with pytest.raises(RecipeError, match="needs the base model"):
        run_stage(stage)
    made = run_stage(stage.model_copy(update={"base": str(root / "dense")})).manifest.metrics
    assert made["held_out_nll"] == pytest.approx(metrics["held_out_nll_merged"], abs=1e-5)
    with pytest.raises(ArtifactError, match="delta_scale"):
        load_coefficients(tmp_path / "mix")
    assert load_mixing(tmp_path / "mix").needs_base


def test_without_it_keys_and_inputs_are_as_ever(root: Path, tmp_path: Path) -> None:
    plain, with_base = mix_stage(root, tmp_path / "a"), mix_stage(root, tmp_path / "b", base=True)
    assert stage_key(plain) == stage_key(with_base)
    assert "base" not in with_base.inputs() and "delta_scale" not in plain.settings()["merge"]
    steps = {step.role: step for step in pipeline_steps(Recipe())}
    assert "base" not in steps["mix"].given and "base" not in steps["merge"].given
    steps = {step.role: step for step in pipeline_steps(Recipe(merge=MergeConfig(delta_scale=0.7)))}
    assert "base" in steps["mix"].given and "base" in steps["merge"].given
    with pytest.raises(RecipeError, match="Mixing needs the base model"):
        mix_stage(root, tmp_path / "c", delta_scale=0.7).inputs()


def test_a_base_of_another_form_is_refused(root: Path, tmp_path: Path) -> None:
    other = tuned(tmp_path, "qwen2").parent / "dense"
    with pytest.raises(CheckpointError, match="is of family qwen2"):
        MixtureReader(root / "moe", other)
