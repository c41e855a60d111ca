"""The average of weights over a training: the steps it covers, that it does not drift, and that a restart changes no bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.xft_core.interrupted import interrupted_after
from tests.xft_core.stages.test_sft import changed, ready, sft  # noqa: F401  (a fixture)
from xft_core.errors import CheckpointError
from xft_core.files.digests import file_digest
from xft_core.recipe.sections import SftConfig
from xft_core.stages.configs import SftStage
from xft_core.stages.run import run_stage
from xft_core.training.averaging import FILE_NAME, RunningAverage, average_share, averaged_steps, put_average

STEPS = 40


def averaged(kind: Any, weights: list[torch.Tensor], directory: Path, **changes: Any) -> torch.Tensor:
    """Return the average over a training with one step per weight, as put into a model at the end."""
    model = nn.Linear(3, 2, bias=False).to(weights[0].dtype)
    running = RunningAverage(SftConfig(average=kind, **changes), len(weights))
    for step, weight in enumerate(weights, start=1):
        with torch.no_grad():
            model.weight.copy_(weight)
        running.add(model, step)
    running.save(directory)
    put_average(model, directory)
    return model.weight.detach()


def random_walk() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(STEPS, 2, 3, generator=generator).cumsum(0))


def test_ema_is_the_bias_corrected_one(tmp_path: Path) -> None:
    weights, decay = random_walk(), 1 - 1 / (0.1 * STEPS)
    moment = torch.zeros(2, 3, dtype=torch.float64)
    for weight in weights:
        moment = decay * moment + (1 - decay) * weight.double()
    assert torch.allclose(averaged("ema", weights, tmp_path).double(), moment / (1 - decay**STEPS), atol=1e-5)


def test_last_k_is_the_mean_of_evenly_spaced_steps_at_the_end(tmp_path: Path) -> None:
    assert averaged_steps(5, 100) == [68, 76, 84, 92, 100]
    assert averaged_steps(5, 3) == [2, 3]  # fewer steps than five
    weights = random_walk()
    chosen = torch.stack([weights[step - 1] for step in averaged_steps(4, STEPS)])
    assert torch.allclose(averaged("last_k", weights, tmp_path, average_count=4), chosen.mean(0), atol=1e-5)


@pytest.mark.parametrize("kind", ["last_k", "ema"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_never_change_average_to_themselves(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = random_walk()[-1].to(dtype)
    assert torch.equal(averaged(kind, [weight] * STEPS, tmp_path), weight)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_training_too_short_for_a_memory_averages_the_last_step_alone(steps: int) -> None:
    assert average_share(SftConfig(average="ema"), steps, steps) == 1


def test_what_holds_no_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no average of this model's weights"):
        put_average(nn.Linear(2, 2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), [
    ("dense", "ema"), *(pytest.param(*both, marks=pytest.mark.slow) for both in (("dense", "last_k"), ("moe", "ema")))])
def test_a_restart_changes_no_bit_of_the_average(
        model: str, kind: str, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    config = changed(average=kind, epochs=2, checkpoint_steps=2, average_count=20)
    stages = [SftStage(output=tmp_path / name, model=str(ready / model), data=ready / "data", sft=config) for name in "ab"]
    interrupted_after(7, stages[0], monkeypatch)
    made = [run_stage(stage).manifest for stage in stages]
    for path in ("model.safetensors", "average/model.safetensors"):
        assert file_digest(tmp_path / "a" / path) == file_digest(tmp_path / "b" / path)
    assert made[0].metrics["held_out_nll_average"] == made[1].metrics["held_out_nll_average"]
    assert made[0].digest == made[1].digest


def test_an_average_changes_neither_the_key_without_it_nor_the_last_step(ready: Path, tmp_path: Path) -> None:  # noqa: F811
    plain = SftStage(output=tmp_path / "plain", model=str(ready / "dense"), data=ready / "data", sft=changed())
    assert "average" not in plain.settings()["sft"] and "match" not in plain.settings()
    metrics = sft(ready, tmp_path / "averaged", "dense", changed(average="last_k"))
    run_stage(plain)
    assert file_digest(tmp_path / "plain" / "model.safetensors") == file_digest(tmp_path / "averaged" / "model.safetensors")
    weights = [load_file(tmp_path / "averaged" / place / "model.safetensors") for place in ("", "average")]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert metrics["held_out_nll_average"] != metrics["held_out_nll"]
    assert not list((tmp_path / "averaged").rglob(FILE_NAME))
