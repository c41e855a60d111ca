"""Penalties, expert dropout and cross-validation: their limits, their gradients, and resuming after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import xft_core.mixing.cross_validation as cross_validation
from tests.xft_core.mixing.models import LEARN, mix_stage
from tests.xft_core.mixing.models import mixed as mix
from xft_core.data.rows import load_rows
from xft_core.mixing.coefficients import load_coefficients, load_mixing
from xft_core.mixing.granularity import Granularity
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.parameters import MixingParameters
from xft_core.mixing.regularization import divergence_from, penalty, without_one_expert
from xft_core.recipe.checks import mixing_findings
from xft_core.recipe.sections import ChecksConfig
from xft_core.stages.run import run_stage, stage_key
from xft_core.store.results.mix import CrossValidationFile, MixMetrics

UNIFORM = torch.tensor([[0.75, *[0.25 / 3] * 3]] * 2, dtype=torch.float64)


@pytest.mark.parametrize("changes", [{}, {"granularity": "tensor"}, {"shared_expert_weight": None}])
@pytest.mark.parametrize("penalty", [1e12, 1e30])
def test_an_infinite_penalty_is_uniform_mixing_bit_for_bit(
        penalty: float, changes: dict[str, Any], root: Path, tmp_path: Path) -> None:
    metrics = mix(root, tmp_path / "mix", uniform_penalty=penalty, **changes)
    mix(root, tmp_path / "uniform", method="uniform")
    found, expected = load_mixing(tmp_path / "mix"), load_coefficients(tmp_path / "uniform")
    if changes.get("shared_expert_weight", 0) is None:  # lambda begins at sigmoid(logit(0.75))
        assert torch.allclose(found.weight, expected, rtol=0, atol=1e-15)
    else:
        assert torch.equal(found.weight, found.granularity.repeated(expected))
    assert metrics["kept_uniform"] == 1 and metrics["movement_max"] < 1e-15 and metrics["steps"] > 0
    assert mixing_findings(MixMetrics.from_flat(metrics), "learned", ChecksConfig()) == []  # intentionally, nothing moved


def test_no_penalty_is_learning_as_it_is(root: Path, tmp_path: Path) -> None:
    """Without a penalty the key is the same, and so are the bits. With a penalty the coefficients move less."""
    assert stage_key(mix_stage(root, tmp_path / "a")) == stage_key(
        mix_stage(root, tmp_path / "b", uniform_penalty=0.0, smoothness=0.0, expert_dropout=0.0, objective="nll"))
    free = mix(root, tmp_path / "free")["movement_max"]
    held = mix(root, tmp_path / "held", uniform_penalty=1.0)["movement_max"]
    assert 0 < held < 0.7 * free


def test_smoothness_brings_layers_together(root: Path, tmp_path: Path) -> None:
    def difference(name: str) -> float:
        alpha_LR = load_coefficients(tmp_path / name)[:, 1:].log()
        return float((alpha_LR - alpha_LR.mean(1, keepdim=True)).diff(dim=0).square().sum())

    mix(root, tmp_path / "free")
    mix(root, tmp_path / "smooth", smoothness=1.0)
    assert difference("smooth") < 0.2 * difference("free")


def test_the_penalty_is_the_equation(root: Path) -> None:
    merge = LEARN.model_copy(update={"uniform_penalty": 0.3, "smoothness": 0.2})
    with MixtureReader(root / "moe") as mixture:
        for granularity in (Granularity(), Granularity("tensor", 3)):
            parameters = MixingParameters(mixture, merge, granularity, 0.75)
            alpha = parameters.tensors["alpha"]
            with torch.no_grad():
                uniform = parameters.shares()
                alpha.copy_(torch.randn(alpha.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
            weight = parameters.shares()
            groups = weight.numel() / 8
            expected = 0.3 * (weight * (weight / uniform).log()).sum() / groups
            expected = expected + 0.2 * (alpha[1] - alpha[0]).square().sum() / groups
            assert torch.allclose(penalty(parameters, weight, uniform, merge), expected, rtol=1e-12)
    assert float(divergence_from(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))) == 0


def test_expert_dropout_leaves_out_one_routed_expert() -> None:
    weight = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    left_out: set[tuple[int, int] | None] = set()
    for step in range(200):
        found = without_one_expert(weight, 1, 0.5, 3, step)
        assert torch.equal(found, without_one_expert(weight, 1, 0.5, 3, step))
        assert torch.allclose(found.sum(1), torch.ones(2, dtype=torch.float64))
        if torch.equal(found, weight):
            left_out.add(None)
            continue
        for layer in range(2):
            zero, = (found[layer] == 0).nonzero().flatten().tolist()
            left_out.add((layer, zero))
            kept = [i for i in range(4) if i != zero]
            assert torch.allclose(found[layer, kept], weight[layer, kept] / weight[layer, kept].sum())
    assert left_out == {None, *((layer, expert) for layer in range(2) for expert in (1, 2, 3))}
    assert torch.equal(without_one_expert(weight[:, :2], 1, 0.999, 3, 0), weight[:, :2])  # the only routed expert stays
    grouped = without_one_expert(weight[:, None].repeat(1, 3, 1), 1, 0.999, 3, 1)
    assert (grouped == 0).sum() == 6 and torch.equal(grouped[:, 0], grouped[:, 2])


def test_expert_dropout_learns_other_coefficients(root: Path, tmp_path: Path) -> None:
    mix(root, tmp_path / "free")
    mix(root, tmp_path / "dropped", expert_dropout=0.5)
    mix(root, tmp_path / "again", expert_dropout=0.5)
    free, dropped, again = (load_coefficients(tmp_path / name) for name in ("free", "dropped", "again"))
    assert torch.equal(dropped, again) and not torch.allclose(free, dropped, atol=1e-3)


def test_cross_validation_takes_the_best_penalty_and_goes_on_after_a_kill(
        root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "PENALTIES", (0.0, 0.1))
    stage = mix_stage(root, tmp_path / "mix", cross_validation=True, rows="reserved")
    real, calls = cross_validation.learn, []

    def learn(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[2].uniform_penalty)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(cross_validation, "learn", learn)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage)
    metrics = run_stage(stage).manifest.metrics
    assert calls == [0.0] * 3 + [0.1] * 2 + [0.1] * 2  # the fifth was interrupted, and earlier measurements were kept
    found = CrossValidationFile.read(tmp_path / "mix")
    assert found is not None and [item.uniform_penalty for item in found.penalties] == [0.0, 0.1]
    means = {item.uniform_penalty: sum(item.losses) for item in found.penalties}
    assert means[found.chosen] == min(means.values()) and metrics["uniform_penalty"] == found.chosen
    monkeypatch.setattr(cross_validation, "learn", real)
    undisturbed = mix_stage(root, tmp_path / "undisturbed", cross_validation=True, rows="reserved")
    run_stage(undisturbed)
    for name in ("cross_validation.json", "coefficients.json"):
        assert json.loads((tmp_path / "mix" / name).read_text()) == json.loads((tmp_path / "undisturbed" / name).read_text())


def test_too_few_rows_for_the_folds_choose_no_penalty_and_end_nothing(
        root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "FOLDS", 10_000)  # more than the number of rows
    metrics = MixMetrics.of(run_stage(mix_stage(root, tmp_path / "mix", cross_validation=True)).manifest)
    mix(root, tmp_path / "plain")
    assert metrics.rows_too_few == len(load_rows(root / "data", "train")) and metrics.uniform_penalty is None
    assert torch.equal(load_coefficients(tmp_path / "mix"), load_coefficients(tmp_path / "plain"))
    assert "missing_material" in {finding.check for finding in mixing_findings(metrics, "learned", ChecksConfig())}
