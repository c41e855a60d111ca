"""Mixing coefficients: the projected gradient equals autograd's, every method gives its defined values, learning resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import xft_core.mixing.mixture as mixing_weights_module
from tests.factories import dense_model, each_family
from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import load_rows
from xft_core.errors import RecipeError
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader, mixing_weights
from xft_core.models.loading import load_model
from xft_core.recipe.sections import DataConfig, MergeConfig, UpcycleConfig
from xft_core.stages.configs import MixStage, PrepareStage
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle
from xft_core.store.curves import read_metrics
from xft_core.training.held_out import held_out_loss
from xft_core.training.response_loss import response_nll

LEARN = MergeConfig(batch_size=4, micro_batch_size=2, precision="fp32", learning_rate=0.2, epochs=2)


def grown_apart(directory: Path, family: str = "llama", seed: int = 0, **upcycled: Any) -> Path:
    """Create an upcycled model whose experts and routers differ, as after tuning."""
    dense_model(directory / "dense", family)
    (directory / "moe").mkdir()
    config = UpcycleConfig(**({"num_experts": 4, "num_experts_per_tok": 3, "store_experts": "all"} | upcycled))
    upcycle(directory / "dense", directory / "moe", config, seed)
    weights = load_file(directory / "moe" / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(weights):
        if any(part in name for part in (".mlp.", ".router.", ".shared_expert.", ".experts.")):
            weights[name] = weights[name] + torch.randn(weights[name].shape, generator=generator) * 0.1
    save_file(weights, directory / "moe" / "model.safetensors", {"format": "pt"})
    return directory / "moe"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mix")
    grown_apart(root)
    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(40)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=6)
    run_stage(PrepareStage(output=root / "data", model=str(root / "dense"), data=data))
    return root


def mix(ready: Path, output: Path, **changes: Any) -> tuple[dict[str, Any], torch.Tensor]:
    merge = MergeConfig(**(LEARN.model_dump() | changes))
    metrics = run_stage(MixStage(output=output, model=str(ready / "moe"), data=ready / "data", merge=merge)).manifest.metrics
    layers = json.loads((output / "coefficients.json").read_text())["layers"]
    return metrics, torch.tensor([layer["weights"] for layer in layers], dtype=torch.float64)


@pytest.mark.parametrize("family", each_family())
@pytest.mark.parametrize("shared_expert", [True, False])
def test_the_projected_gradient_is_that_of_autograd_through_all_experts(
        family: str, shared_expert: bool, tmp_path: Path, ready: Path) -> None:
    """In fp64, to 1e-6: the gradient of alpha (and lambda) by autograd through W, built from all experts."""
    directory = grown_apart(tmp_path, family, shared_expert=shared_expert)
    data = PackedRows(load_rows(ready / "data", "train"), 160, packing=True)
    batch = data.collate([data[0], data[1]])
    generator = torch.Generator().manual_seed(7)
    alpha = torch.randn(2, 4 - shared_expert, dtype=torch.float64, generator=generator, requires_grad=True)
    logit = torch.randn(2, dtype=torch.float64, generator=generator, requires_grad=True)
    leaves = [alpha, logit] if shared_expert else [alpha]

    def shares() -> torch.Tensor:
        return mixing_weights(alpha, torch.sigmoid(logit) if shared_expert else None)

    with MixtureReader(directory) as mixture:
        mixed = MixedModel(mixture, torch.float64, torch.device("cpu"))
        mixed.apply(shares().detach())
        mixed.want_gradient()
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        response_nll(mixed.model(**inputs).logits, batch["labels"]).backward()
        projected = torch.autograd.grad(shares(), leaves, mixed.weight_gradient())

        weights = shares()
        tensors = {}
        for layer in range(mixture.num_layers):
            for tensor in mixture.expert_tensors(layer):
                tensors[tensor.name] = sum(weights[layer, e] * tensor.of_expert(e).double() for e in range(4))
        logits = torch.func.functional_call(mixed.model, tensors, kwargs=inputs).logits
        expected = torch.autograd.grad(response_nll(logits, batch["labels"]), leaves)
    for found, wanted in zip(projected, expected, strict=True):
        assert wanted.abs().max() > 1e-3
        assert (found - wanted).abs().max() <= 1e-6 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("block_elements", [1, 100, 2**20])
def test_blocks_of_any_size_give_the_mixture_and_its_gradient(
        block_elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the equations in fp64: one row at a time, a few with a smaller last block, and all at once."""
    monkeypatch.setattr(mixing_weights_module, "BLOCK_ELEMENTS", block_elements)
    generator = torch.Generator().manual_seed(3)
    weight_N = torch.tensor([0.5, 0.2, 0.0, 0.3], dtype=torch.float64)
    with MixtureReader(grown_apart(tmp_path)) as mixture:
        for tensor in mixture.expert_tensors(1):
            experts = torch.stack([tensor.of_expert(expert).double() for expert in range(4)])
            gradient = torch.randn(tensor.shape, generator=generator)
            blocks = list(mixture.mixed(tensor, weight_N, torch.float64, torch.device("cpu")))
            assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(tensor.shape[0]))
            mixed = torch.cat([block for _, block in blocks])
            assert list(mixed.shape) == tensor.shape and mixed.dtype == torch.float64
            assert torch.allclose(mixed, torch.tensordot(weight_N, experts, 1), rtol=0, atol=1e-12)
            wanted_N = ((experts - experts[0]) * gradient.double()).flatten(1).sum(1)
            assert torch.allclose(mixture.gradient(tensor, gradient), wanted_N, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("method", "weight", "expected"), [
    ("uniform", 0.75, [0.75, 1 / 12, 1 / 12, 1 / 12]), ("uniform", 0.1, [0.1, 0.3, 0.3, 0.3]),
    ("ewa", 0.7, [0.25] * 4), ("shared_only", 0.4, [1, 0, 0, 0])])
def test_methods_without_data(method: str, weight: float, expected: list[float], ready: Path, tmp_path: Path) -> None:
    metrics, weight_LN = mix(ready, tmp_path / "mix", method=method, shared_expert_weight=weight)
    assert torch.allclose(weight_LN, torch.tensor([expected] * 2, dtype=torch.float64))
    uniform = [weight, *[(1 - weight) / 3] * 3]
    assert metrics["movement_max"] == pytest.approx(max(abs(a - b) for a, b in zip(expected, uniform, strict=True)))
    assert (metrics["held_out_nll_merged"] == metrics["held_out_nll_uniform"]) == (method == "uniform")


def test_routing_means_are_the_models_own(ready: Path, tmp_path: Path) -> None:
    _, weight_LN = mix(ready, tmp_path / "mix", method="routing")
    model = load_model(ready / "moe", torch.float32)
    layers = held_out_loss(model, load_rows(ready / "data", "train")).router
    assert torch.allclose(weight_LN, torch.tensor([layer.mean_weights for layer in layers], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(weight_LN.sum(1), torch.ones(2, dtype=torch.float64))


def test_learning_moves_the_coefficients_and_lowers_the_loss(ready: Path, tmp_path: Path) -> None:
    metrics, weight_LN = mix(ready, tmp_path / "mix", epochs=4)
    assert metrics["movement_max"] > 0.01
    assert metrics["held_out_nll_merged"] < metrics["held_out_nll_uniform"]
    assert torch.allclose(weight_LN[:, 0], torch.full((2,), 0.75, dtype=torch.float64))
    assert torch.allclose(weight_LN.sum(1), torch.ones(2, dtype=torch.float64))


def test_lambda_can_be_learned_too(ready: Path, tmp_path: Path) -> None:
    metrics, weight_LN = mix(ready, tmp_path / "mix", shared_expert_weight=None)
    assert (weight_LN[:, 0] - 0.75).abs().min() > 1e-3
    assert metrics["held_out_nll_merged"] < metrics["held_out_nll_uniform"]


def test_same_seed_same_coefficients(ready: Path, tmp_path: Path) -> None:
    a, b = (mix(ready, tmp_path / name)[1] for name in "ab")
    assert torch.equal(a, b)


def test_unused_fields_do_not_change_the_key(ready: Path, tmp_path: Path) -> None:
    mix(ready, tmp_path / "mix", method="ewa", shared_expert_weight=0.75)
    stage = MixStage(
        output=tmp_path / "mix", model=str(ready / "moe"), data=ready / "data",
        merge=MergeConfig(**(LEARN.model_dump() | {"method": "ewa", "calibration_rows": 3, "learning_rate": 0.5})))
    assert run_stage(stage).reused


@pytest.mark.slow
def test_a_killed_mix_resumes_to_the_same_coefficients(ready: Path, tmp_path: Path) -> None:
    changes = {"epochs": 60, "batch_size": 2, "micro_batch_size": 2}
    _, expected = mix(ready, tmp_path / "undisturbed", **changes)
    merge = MergeConfig(**(LEARN.model_dump() | changes))
    stage = MixStage(output=tmp_path / "killed", model=str(ready / "moe"), data=ready / "data", merge=merge)
    (tmp_path / "killed.json").write_text(stage.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-m", "xft_core", "mix", str(tmp_path / "killed.json")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed.partial" / "checkpoints" / "checkpoint-25" / "whole"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run_stage(stage)
    layers = json.loads((tmp_path / "killed" / "coefficients.json").read_text())["layers"]
    assert torch.equal(torch.tensor([layer["weights"] for layer in layers], dtype=torch.float64), expected)
    steps = [point["step"] for point in read_metrics(tmp_path / "killed" / "metrics.jsonl") if "loss" in point["metrics"]]
    assert steps == sorted(set(steps))


def test_one_routed_expert_and_a_fixed_lambda_leave_nothing_to_learn(ready: Path, tmp_path: Path) -> None:
    config = UpcycleConfig(num_experts=2, num_experts_per_tok=2)
    (tmp_path / "moe").mkdir()
    upcycle(ready / "dense", tmp_path / "moe", config, seed=0)
    stage = MixStage(output=tmp_path / "mix", model=str(tmp_path / "moe"), data=ready / "data", merge=LEARN)
    metrics = run_stage(stage).manifest.metrics
    assert metrics["steps"] == 0 and metrics["movement_max"] == 0


def test_shared_only_without_a_shared_expert_is_refused(ready: Path, tmp_path: Path) -> None:
    (tmp_path / "moe").mkdir()
    config = UpcycleConfig(num_experts=4, num_experts_per_tok=2, shared_expert=False)
    upcycle(ready / "dense", tmp_path / "moe", config, seed=0)
    stage = MixStage(
        output=tmp_path / "mix", model=str(tmp_path / "moe"), data=ready / "data", merge=MergeConfig(method="shared_only"))
    with pytest.raises(RecipeError, match="has no shared expert"):
        run_stage(stage)


def test_labels_of_prompts_never_count() -> None:
    logits = torch.randn(1, 4, 9)
    labels = torch.tensor([[1, IGNORED, 3, IGNORED]])
    expected = -torch.log_softmax(logits[0, 1], -1)[3]
    assert torch.allclose(response_nll(logits, labels), expected)
