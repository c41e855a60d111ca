"""Ensembles of whole models: one-hot shares bit for bit, gradients, never worse than a member, tied embeddings, kills."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factories import dense_model
from tests.xft_core.stages.test_mix import grown_apart
from tests.xft_core.stages.test_mix import ready as ready_data
from xft_core.data.rows import load_rows
from xft_core.errors import CheckpointError
from xft_core.mixing.ensemble import Members
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import pipeline_steps
from xft_core.stages.configs import EnsembleStage
from xft_core.stages.run import run_stage

ready = ready_data  # a fixture


def near(directory: Path, base: Path, seed: int, step: float) -> Path:
    """Copy ``base`` to ``directory``, moved by a random step."""
    directory.mkdir()
    for path in base.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(base / "model.safetensors")
    weights = {name: tensor + step * torch.randn(tensor.shape, generator=generator) for name, tensor in sorted(weights.items())}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    base = dense_model(tmp_path / "base", "qwen2")  # tied embeddings
    return {"base": str(base), "sft": str(near(tmp_path / "sft", base, 1, 0.02)),
            "merged": str(near(tmp_path / "merged", base, 2, 0.02))}


def ensemble(output: Path, ready: Path, models: dict[str, str], method: str, **fields: Any) -> dict[str, Any]:
    stage = EnsembleStage(output=output, models=models, data=ready / "data", method=method, rows=8, **fields)  # type: ignore
    return run_stage(stage).manifest.metrics


def test_one_hot_shares_are_the_member_bitwise(models: dict[str, str], ready: Path) -> None:
    with Members({name: Path(path) for name, path in models.items()}, torch.float32, torch.device("cpu")) as members:
        for number, path in enumerate(models.values()):
            members.apply(torch.eye(3, dtype=torch.float64)[number])
            weights = load_file(Path(path) / "model.safetensors")
            assert all(torch.equal(parameter, weights[name]) for name, parameter in members.parameters.items())


def test_the_gradient_of_shares_is_that_of_the_loss(models: dict[str, str], ready: Path) -> None:
    """Compare it with finite differences of the loss (norms compute in fp32, whatever the dtype of the weights)."""
    rows, beta = load_rows(ready / "data", "train"), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    with Members({name: Path(path) for name, path in models.items()}, torch.float64, torch.device("cpu")) as members:
        members.apply(beta)
        members.loss(rows, 4, with_gradient=True)
        gradient = members.gradient()
        for number in range(3):
            step = 2e-3 * torch.eye(3, dtype=torch.float64)[number]
            losses = []
            for moved in (beta + step, beta - step):
                members.apply(moved)
                losses.append(members.loss(rows, 4))
            assert float(gradient[number]) == pytest.approx((losses[0] - losses[1]) / 4e-3, rel=2e-3)


def test_greedy_is_never_worse_than_its_best_member(models: dict[str, str], ready: Path, tmp_path: Path) -> None:
    metrics = ensemble(tmp_path / "greedy", ready, models, "greedy")
    told = json.loads((tmp_path / "greedy" / "ensemble.json").read_text())
    assert metrics["selection_nll"] <= metrics["selection_nll_before"] == min(told["measured"].values())
    assert sum(told["weights"].values()) == pytest.approx(1) and set(told["measured"]) == set(models)
    far = {"far": str(near(tmp_path / "far", Path(models["base"]), 3, 1.0)), "base": models["base"]}
    ensemble(tmp_path / "alone", ready, far, "greedy")  # adding "far" would only make it worse
    assert json.loads((tmp_path / "alone" / "ensemble.json").read_text())["weights"] == {"far": 0.0, "base": 1.0}
    alone, base = (load_file(Path(path) / "model.safetensors") for path in (tmp_path / "alone", models["base"]))
    assert alone.keys() == base.keys() and all(torch.equal(alone[name], base[name]) for name in base)


def test_learned_shares_are_better_than_equal_ones_and_keep_embeddings_tied(
        models: dict[str, str], ready: Path, tmp_path: Path) -> None:
    models = {"far": str(near(tmp_path / "far", Path(models["base"]), 3, 0.3)), **models}
    metrics = ensemble(tmp_path / "learned", ready, models, "learned", steps=12)
    assert metrics["selection_nll"] < metrics["selection_nll_before"]
    assert metrics["weight/far"] != pytest.approx(0.25, abs=0.01)
    made = load_file(tmp_path / "learned" / "model.safetensors")
    assert "lm_head.weight" not in made and made.keys() == load_file(Path(models["base"]) / "model.safetensors").keys()
    assert json.loads((tmp_path / "learned" / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("method", ["greedy", "learned"])
def test_a_kill_changes_no_bit(
        method: str, models: dict[str, str], ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Members.loss
    measured: list[bool] = []
    dead: list[bool] = []

    def dying(members: Members, *given: Any, **more: Any) -> float:
        if len(measured) == 2 and not dead:
            dead.append(True)
            raise KeyboardInterrupt
        measured.append(True)
        return loss(members, *given, **more)

    ensemble(tmp_path / "undisturbed", ready, models, method, steps=3)
    monkeypatch.setattr(Members, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        ensemble(tmp_path / "killed", ready, models, method, steps=3)
    ensemble(tmp_path / "killed", ready, models, method, steps=3)
    assert len(measured) == (5 if method == "greedy" else 4)
    for name in ("model.safetensors", "ensemble.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_models_of_other_forms_are_refused(models: dict[str, str], ready: Path, tmp_path: Path) -> None:
    other = str(dense_model(tmp_path / "other", "qwen2", intermediate_size=40))
    with pytest.raises(CheckpointError, match="Models of different forms cannot form an ensemble"):
        ensemble(tmp_path / "out", ready, {"other": other, **models}, "greedy")
    (tmp_path / "apart").mkdir()
    with pytest.raises(CheckpointError, match="Only dense models can form an ensemble"):
        ensemble(tmp_path / "out", ready, {"moe": str(grown_apart(tmp_path / "apart")), **models}, "greedy")


def test_the_pipeline_has_one_only_when_asked_and_measures_it_like_the_others() -> None:
    assert not [step for step in pipeline_steps(Recipe()) if "ensemble" in step.role]
    recipe = parse(Recipe, {}, ["merge.ensemble=greedy", "baseline.average=ema"])
    steps = {step.role: step for step in pipeline_steps(recipe)}
    assert list(steps["ensemble"].given["models"]) == ["base", "sft", "sft_average", "merged"]
    assert {"generate_ensemble_0", "evaluate_ensemble_0", "row_losses_ensemble"} <= set(steps)
    assert "ensemble" in steps["report"].given["artifacts"]
    assert set(steps["row_losses_ensemble"].given["trained_by"]) == {"sft_moe", "sft_baseline", "mix"}
    key = {role: step.given["merge"] for role, step in steps.items() if role == "mix"}
    assert key["mix"].ensemble == "greedy"
