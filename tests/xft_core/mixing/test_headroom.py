"""The headroom test measures the right losses, and uniform mixing is used if there is nothing to learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xft_core.mixing.models import LEARN
from tests.xft_core.mixing.models import mixed as mix
from xft_core.data.rows import load_rows
from xft_core.mixing.coefficients import load_coefficients
from xft_core.mixing.delta_scale import scaled
from xft_core.mixing.learning import objective_now
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader, mixing_weights
from xft_core.mixing.objective import nll
from xft_core.recipe.checks import mixing_findings
from xft_core.recipe.sections import ChecksConfig
from xft_core.store.results.mix import HeadroomFile, MixMetrics


@pytest.mark.parametrize("changes", [{}, {"granularity": "tensor"}, {"shared_expert_weight": None}, {"delta_scale": None}])
def test_it_measures_what_it_says(changes: dict[str, Any], root: Path, tmp_path: Path) -> None:
    metrics = mix(root, tmp_path / "mix", base=True, headroom=True, rows="reserved", headroom_threshold=0.0, **changes)
    found = HeadroomFile.read(tmp_path / "mix")
    assert found is not None and found.rows == 8
    names = [probe.name for probe in found.probes]
    assert names == [
        "lambda 0.25", "lambda 0.5", "lambda 0.9", "gamma 0.5", "gamma 0.7", "gamma 0.85", "gamma 1.15", "gradient 0.3",
        "gradient 1", "gradient 3", "expert 1", "expert 2", "expert 3", "random 1", "random 2", "random 3"]
    learnable = {probe.name.split()[0] for probe in found.probes if probe.learnable}
    assert learnable - {"gradient", "expert", "random"} == (
        {"lambda"} if "shared_expert_weight" in changes else {"gamma"} if "delta_scale" in changes else set())
    assert metrics["headroom"] == found.uniform - min(probe.loss for probe in found.probes if probe.learnable)
    assert metrics["headroom"] > 0 and metrics["movement_max"] > 0.01 and "kept_uniform" not in metrics
    by_name = {probe.name: probe.loss for probe in found.probes}
    assert by_name["gradient 0.3"] < found.uniform  # downhill
    rows = load_rows(root / "data", "reserved")
    uniform = torch.tensor([[0.75, *[1 / 12] * 3]] * 2, dtype=torch.float64)
    with MixtureReader(root / "moe", root / "dense") as mixture:
        mixed = MixedModel(mixture, torch.float32, torch.device("cpu"))

        def loss(weight: torch.Tensor) -> float:
            mixed.apply(weight)
            return objective_now(mixed, rows, 2, nll)

        assert found.uniform == pytest.approx(loss(uniform), abs=1e-6)
        assert by_name["gamma 0.7"] == pytest.approx(loss(scaled(uniform, torch.tensor([0.7, 0.7]).double())), abs=1e-6)
        half = mixing_weights(torch.zeros(2, 3, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64))
        assert by_name["lambda 0.5"] == pytest.approx(loss(half), abs=1e-6)
        assert by_name["expert 2"] == pytest.approx(loss(torch.tensor([[0.75, 0, 0.25, 0]] * 2).double()), abs=1e-6)


def test_without_headroom_uniform_mixing_is_taken(root: Path, tmp_path: Path) -> None:
    metrics = mix(root, tmp_path / "mix", headroom=True, headroom_threshold=50.0)
    mix(root, tmp_path / "uniform", method="uniform")
    assert torch.equal(load_coefficients(tmp_path / "mix"), load_coefficients(tmp_path / "uniform"))
    assert metrics["kept_uniform"] == 1 and metrics["steps"] == 0 and metrics["headroom_threshold"] == 50
    assert metrics["held_out_nll_merged"] == metrics["held_out_nll_uniform"]
    assert mixing_findings(MixMetrics.from_flat(metrics), "learned", ChecksConfig()) == []
    found = HeadroomFile.read(tmp_path / "mix")
    assert found is not None and "gamma 0.7" not in [probe.name for probe in found.probes]  # no base model was given


@pytest.mark.slow
def test_learning_after_it_is_learning_without_it(root: Path, tmp_path: Path) -> None:
    mix(root, tmp_path / "tested", base=True, headroom=True, headroom_threshold=0.0)
    mix(root, tmp_path / "plain")
    assert torch.equal(load_coefficients(tmp_path / "tested"), load_coefficients(tmp_path / "plain"))
    assert LEARN.headroom is False
