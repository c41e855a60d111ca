"""Tuning with every kind of routing and every router term: it learns, resumes bit for bit, is saved completely, and merges."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.factories import dense_model
from tests.xft_core.interrupted import interrupted_after
from xft_core.data.rows import load_rows
from xft_core.errors import RecipeError
from xft_core.files.digests import file_digest
from xft_core.mixing.coefficients import routing_means
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.balance import BIAS_STEP
from xft_core.recipe.sections import DataConfig, MergeConfig, SftConfig, UpcycleConfig
from xft_core.stages.configs import MergeStage, MixStage, PrepareStage, SftStage, UpcycleStage
from xft_core.stages.run import run_stage
from xft_core.store.curves import read_metrics

FAST: dict[str, Any] = {
    "epochs": 1, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 5e-3, "precision": "fp32", "optimizer": "adamw",
    "checkpoint_steps": 3, "log_steps": 1, "warmup_steps": 0}
FOUR = {"num_experts": 4, "num_experts_per_tok": 3}
ONE_OF_FOUR = {"num_experts": 4, "num_experts_per_tok": 1, "shared_expert": False}
TOP_P = {"num_experts": 4, "num_experts_per_tok": 4, "routing": "top_p", "target_active": 2.5}

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{router: (ONE_OF_FOUR | {"router": router}, {}) for router in ("frozen", "hashed", "random", "by_example")},
    "temperature": (FOUR | {"routing_temperature": 0.2}, {}),
    "gate": (FOUR | {"shared_gate": "token"}, {"balance_scope": "step"}),
    "top_p": (TOP_P, {"router_gradient": "dense"}),
    "bias": (FOUR, {"balance": "bias"}),
    "diversity": (FOUR, {"diversity_weight": 0.1, "score_variance_weight": 0.1}),
    "all": (TOP_P | {"shared_gate": "token", "routing_temperature": 0.3}, {
        "balance": "bias", "router_gradient": "dense", "diversity_weight": 0.1, "score_variance_weight": 0.1,
        "gradient_checkpointing": True, "precision": "bf16", "optimizer": "adafactor"})}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a directory with a dense model and prepared data."""
    root = tmp_path_factory.mktemp("routing")
    dense_model(root / "dense")
    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(48)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=6)
    run_stage(PrepareStage(output=root / "data", model=str(root / "dense"), data=data))
    return root


def upcycled(ready: Path, output: Path, **fields: Any) -> Path:
    run_stage(UpcycleStage(output=output, model=str(ready / "dense"), upcycle=UpcycleConfig(**fields)))
    return output


def stage(ready: Path, output: Path, moe: Path, **changes: Any) -> SftStage:
    return SftStage(output=output, model=str(moe), data=ready / "data", sft=SftConfig(**(FAST | changes)))


def curve(output: Path) -> list[dict[str, float]]:
    return [point["metrics"] for point in read_metrics(output / "metrics.jsonl") if "loss" in point["metrics"]]


@pytest.mark.parametrize("option", [
    name if name == "gate" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS])
def test_it_learns_and_resumes_to_the_bit_and_merges(
        option: str, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upcycle, sft = OPTIONS[option]
    moe = upcycled(ready, tmp_path / "moe", **upcycle)
    metrics = run_stage(stage(ready, tmp_path / "a", moe, **sft)).manifest.metrics
    assert metrics["held_out_nll"] < metrics["held_out_nll_before"] - 0.3
    assert metrics["expert_delta_cosine"] < 0.999
    interrupted_after(4, stage(ready, tmp_path / "b", moe, **sft), monkeypatch)  # continues from step 3
    run_stage(stage(ready, tmp_path / "b", moe, **sft))
    for name in ("model.safetensors", "router.json"):
        assert file_digest(tmp_path / "a" / name) == file_digest(tmp_path / "b" / name)
    points = [[{**point, "tokens_per_second": 0} for point in curve(tmp_path / name)] for name in "ab"]
    assert points[0] == points[1]
    tuned = load_model(tmp_path / "a", torch.float32)
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(tensor.float(), weights[name].float()) for name, tensor in tuned.state_dict().items())
    mix = MixStage(output=tmp_path / "mix", model=str(tmp_path / "a"), data=ready / "data", merge=MergeConfig(
        method="routing", calibration_rows=8, precision="fp32"))
    run_stage(mix)
    run_stage(MergeStage(output=tmp_path / "merged", model=str(tmp_path / "a"), coefficients=mix.output, data=ready / "data"))
    assert not any("router" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_what_is_no_weight_of_the_router_stays_as_it_was(ready: Path, tmp_path: Path) -> None:
    moe = upcycled(ready, tmp_path / "moe", **ONE_OF_FOUR, router="frozen")
    run_stage(stage(ready, tmp_path / "out", moe))
    before, after = (load_file(directory / "model.safetensors") for directory in (moe, tmp_path / "out"))
    routers = [name for name in before if ".router." in name]
    assert len(routers) == 6 and all(torch.equal(before[name], after[name]) for name in routers)
    hashed = upcycled(ready, tmp_path / "hashed", **ONE_OF_FOUR, router="hashed")
    assert not any(".router." in name for name in load_file(hashed / "model.safetensors"))


def test_examples_go_whole_to_one_expert(ready: Path, tmp_path: Path) -> None:
    """An expert that no training example went to stays the same, so experts see disjoint rows."""
    fields = {"num_experts": 48, "num_experts_per_tok": 1, "shared_expert": False, "router": "by_example"}
    moe = upcycled(ready, tmp_path / "moe", **fields)
    run_stage(stage(ready, tmp_path / "out", moe, max_steps=1, batch_size=2, learning_rate=1e-2))
    before, after = (moe_blocks(load_model(directory, torch.float32)) for directory in (moe, tmp_path / "out"))
    moved = [[i for i in range(48) if not torch.equal(b.experts.down_proj[i], a.experts.down_proj[i])]
             for b, a in zip(before, after, strict=True)]
    rows = load_rows(ready / "data", "train")
    assert moved[0] == moved[1] and 2 <= len(moved[0]) <= len(rows)
    assert len(moved[0]) < 20  # two sequences contain only a few rows


@pytest.mark.slow
def test_top_p_comes_to_its_target_and_is_saved(ready: Path, tmp_path: Path) -> None:
    moe = upcycled(ready, tmp_path / "moe", **TOP_P)
    metrics = run_stage(stage(ready, tmp_path / "out", moe, epochs=8, batch_size=2, learning_rate=5e-4)).manifest.metrics
    points = curve(tmp_path / "out")
    active = [point["mean_active_experts"] for point in points]
    half = active[len(active) // 2:]
    assert len(active) >= 30
    assert abs(sum(half) / len(half) - 2.5) < 0.05 * 2.5
    tops = [block.router.top_p for block in moe_blocks(load_model(tmp_path / "out", torch.bfloat16))]
    assert all(top is not None and float(top[0]) == points[-1]["top_p"] for top in tops)
    assert metrics["mean_active_experts"] != 4
    layers = json.loads((tmp_path / "out" / "router.json").read_text())["layers"]
    assert sum(layer["mean_active"] for layer in layers) / 2 == pytest.approx(metrics["mean_active_experts"])


@pytest.mark.slow
def test_the_bias_evens_the_load_without_a_loss(ready: Path, tmp_path: Path) -> None:
    moe = upcycled(ready, tmp_path / "moe", num_experts=4, num_experts_per_tok=2, router_noise=False)
    options = {"balance": "bias", "epochs": 100, "max_steps": 200, "batch_size": 2, "learning_rate": 1e-4, "log_steps": 10}
    run_stage(stage(ready, tmp_path / "bias", moe, **options))
    points = curve(tmp_path / "bias")
    assert "balance_loss" not in points[0]
    first = torch.tensor([points[0][f"expert_load/{i}"] for i in (1, 2, 3)])
    layers = json.loads((tmp_path / "bias" / "router.json").read_text())["layers"]
    last = [torch.tensor(layer["load"]) for layer in layers]
    assert max(load.std() / load.mean() for load in last) < 0.3 < first.std() / first.mean()
    weights = load_file(tmp_path / "bias" / "model.safetensors")
    biases = [tensor for name, tensor in weights.items() if name.endswith("router.balance_bias")]
    assert len(biases) == 2 and all(0 < bias.abs().max() <= 200 * BIAS_STEP + 1e-6 for bias in biases)


@pytest.mark.slow
def test_the_gate_starts_at_its_start_and_the_routing_method_finds_its_mean(ready: Path, tmp_path: Path) -> None:
    moe = upcycled(ready, tmp_path / "moe", **FOUR, shared_gate="token", shared_gate_start=0.4)
    rows = load_rows(ready / "data", "train")
    merge = MergeConfig(method="routing", calibration_rows=8, precision="fp32")
    assert torch.allclose(routing_means(moe, rows, merge)[:, 0], torch.tensor(0.6, dtype=torch.float64), atol=1e-6)
    metrics = run_stage(stage(ready, tmp_path / "out", moe, epochs=4)).manifest.metrics
    means = routing_means(tmp_path / "out", rows, merge)
    assert means[:, 0].mean().item() == pytest.approx(metrics["mean_shared_weight"], abs=0.05)
    assert metrics["shared_weight_spread"] > 1e-4 and "gate_budget_loss" in curve(tmp_path / "out")[-1]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"router_gradient": "dense"}, {"diversity_weight": 0.5}, {"balance_scope": "step"}])
def test_the_first_step_is_that_of_the_default_and_the_second_is_not(
        changes: dict[str, Any], ready: Path, tmp_path: Path) -> None:
    """A forward pass with the dense gradient, diversity in the first tenth, and a step's first pass do not change a bit."""
    moe = upcycled(ready, tmp_path / "moe", **FOUR)
    for name, options in (("a", {}), ("b", changes)):
        run_stage(stage(ready, tmp_path / name, moe, epochs=2, **options))
    a, b = curve(tmp_path / "a"), curve(tmp_path / "b")
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], abs=1e-6 if "balance_scope" in changes else 0)
    assert a[-1]["loss"] != b[-1]["loss"]


@pytest.mark.slow
def test_diversity_makes_what_experts_add_differ(ready: Path, tmp_path: Path) -> None:
    moe, found = upcycled(ready, tmp_path / "moe", **FOUR), {}
    for weight in (1e-9, 3.0):
        run_stage(stage(ready, tmp_path / str(weight), moe, epochs=4, diversity_weight=weight))
        points = curve(tmp_path / str(weight))
        found[weight] = [point["diversity_loss"] for point in points if "diversity_loss" in point]
        assert len(found[weight]) == len(points) - len(points) // 10 and 0 < max(found[weight]) <= 1
    assert found[3.0][-1] < 0.5 * found[1e-9][-1]


def test_settings_that_do_not_fit_the_model_are_refused(ready: Path, tmp_path: Path) -> None:
    moe = upcycled(ready, tmp_path / "moe", **ONE_OF_FOUR)
    with pytest.raises(RecipeError, match=r"sft\.diversity_weight compares the routed experts"):
        run_stage(stage(ready, tmp_path / "out", moe, diversity_weight=0.1))
