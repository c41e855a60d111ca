"""SFT learns, resumes bit for bit, and writes models that load; dense and MoE through one code path."""

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
from transformers import AutoModelForCausalLM

from tests.factories import dense_model
from tests.xft_core.interrupted import interrupted_after
from xft_core.data.packing import PackedRows
from xft_core.data.rows import load_rows
from xft_core.errors import CheckpointError, DataError
from xft_core.files.digests import file_digest
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.recipe.checks import RunWentWrong
from xft_core.recipe.sections import ChecksConfig, DataConfig, SftConfig, UpcycleConfig
from xft_core.stages.configs import PrepareStage, SftStage, UpcycleStage
from xft_core.stages.run import run_stage
from xft_core.store.curves import MetricsLog, read_metrics
from xft_core.training.held_out import held_out_loss
from xft_core.training.trainer import TrainingFailed, train

FAST = SftConfig(
    epochs=1, batch_size=4, micro_batch_size=2, learning_rate=5e-3, precision="fp32", optimizer="adamw", checkpoint_steps=3,
    log_steps=1, warmup_steps=0)


def changed(**changes: Any) -> SftConfig:
    return SftConfig(**(FAST.model_dump() | changes))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a directory with a dense model, its upcycled twin and prepared data."""
    root = tmp_path_factory.mktemp("sft")
    dense_model(root / "dense")
    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(48)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=6)
    run_stage(PrepareStage(output=root / "data", model=str(root / "dense"), data=data))
    upcycle = UpcycleConfig(num_experts=4, num_experts_per_tok=3)
    run_stage(UpcycleStage(output=root / "moe", model=str(root / "dense"), upcycle=upcycle))
    return root


def sft(ready: Path, output: Path, model: str, config: SftConfig = FAST, seed: int = 0) -> dict[str, Any]:
    stage = SftStage(output=output, model=str(ready / model), data=ready / "data", sft=config, seed=seed)
    return run_stage(stage).manifest.metrics


@pytest.mark.parametrize("model", ["dense", "moe"])
def test_tuning_lowers_the_held_out_loss_and_the_result_loads(model: str, ready: Path, tmp_path: Path) -> None:
    metrics = sft(ready, tmp_path / "out", model)
    assert metrics["held_out_nll"] < metrics["held_out_nll_before"] - 0.5
    tuned = load_model(tmp_path / "out", torch.float32)
    assert held_out_loss(tuned, load_rows(ready / "data", "held_out")).nll == pytest.approx(metrics["held_out_nll"], abs=1e-6)
    points = read_metrics(tmp_path / "out" / "metrics.jsonl")
    steps = [point["step"] for point in points if "loss" in point["metrics"]]
    assert steps == list(range(1, int(metrics["steps"]) + 1))
    if model == "moe":
        assert {"balance_loss", "mean_shared_weight", "router_entropy", "expert_load_min"} <= points[2]["metrics"].keys()
        content = json.loads((tmp_path / "out" / "router.json").read_text())
        layers, classes = content["layers"], content["token_classes"]
        assert {item["name"] for item in classes} == {"keyword", "identifier", "number or operator"}
        assert all(len(item["mean"]) == len(item["spread"]) == 2 for item in classes)
        assert len(layers) == 2 and all(abs(sum(layer["load"]) - 1) < 1e-6 for layer in layers)
    else:
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert "balance_loss" not in points[2]["metrics"]


def test_upcycling_and_dense_start_from_the_same_held_out_loss(ready: Path, tmp_path: Path) -> None:
    dense, moe = (sft(ready, tmp_path / model, model, changed(max_steps=1)) for model in ("dense", "moe"))
    assert dense["held_out_nll_before"] == pytest.approx(moe["held_out_nll_before"], abs=1e-5)


@pytest.mark.parametrize("changes", [
    {"packing": False}, {"precision": "bf16_mixed"}, *(pytest.param(changes, marks=pytest.mark.slow) for changes in (
        {"optimizer": "adafactor"}, {"gradient_checkpointing": True}, {"precision": "bf16"},
        {"schedule": "cosine", "max_grad_norm": 1.0, "weight_decay": 0.1}, {"balance_loss_reduction": "mean"}))],
    ids=lambda changes: "-".join(changes))
def test_every_option_trains(changes: dict[str, Any], ready: Path, tmp_path: Path) -> None:
    metrics = sft(ready, tmp_path / "out", "moe", changed(**changes))
    assert metrics["held_out_nll"] < metrics["held_out_nll_before"]


def test_gradient_checkpointing_changes_nothing(ready: Path, tmp_path: Path) -> None:
    for name, flag in (("a", False), ("b", True)):
        sft(ready, tmp_path / name, "moe", changed(gradient_checkpointing=flag, max_steps=3))
    a, b = (load_model(tmp_path / name, torch.float32).state_dict() for name in "ab")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_the_micro_batch_size_changes_nothing_but_rounding(ready: Path, tmp_path: Path) -> None:
    """Accumulation weighs every response token equally, however the batch is divided. (Without noise and balance loss, which
    are defined per micro-batch; a plain SGD-like comparison of the first step's loss and weights.)"""
    config = {"max_steps": 2, "balance_loss_weight": 0.0, "optimizer": "adafactor", "packing": False}
    for name, micro in (("a", 4), ("b", 1)):
        sft(ready, tmp_path / name, "dense", changed(micro_batch_size=micro, **config))
    curves = [[point["metrics"]["loss"] for point in read_metrics(tmp_path / name / "metrics.jsonl")
               if "loss" in point["metrics"]] for name in "ab"]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(ready: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sft(ready, tmp_path / name, "moe", changed(max_steps=3), seed)
    a, b, c = (file_digest(tmp_path / name / "model.safetensors") for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("model", ["dense", pytest.param("moe", marks=pytest.mark.slow)])
def test_a_killed_run_started_again_gives_the_same_bits(model: str, ready: Path, tmp_path: Path) -> None:
    config = changed(epochs=4, checkpoint_steps=2)
    sft(ready, tmp_path / "undisturbed", model, config)
    killed = SftStage(output=tmp_path / "killed", model=str(ready / model), data=ready / "data", sft=config)
    (tmp_path / "killed.json").write_text(killed.model_dump_json())
    command = [sys.executable, "-m", "xft_core", "sft", str(tmp_path / "killed.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marker = tmp_path / "killed.partial" / "checkpoints" / "checkpoint-4" / "whole"
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    # An incomplete checkpoint must not be resumed from.
    half = tmp_path / "killed.partial" / "checkpoints" / "checkpoint-999"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "continuing from step" in result.stderr
    names = ("model.safetensors", "config.json")
    assert [file_digest(tmp_path / "killed" / name) for name in names] == [
        file_digest(tmp_path / "undisturbed" / name) for name in names]
    steps = [point["step"] for point in read_metrics(tmp_path / "killed" / "metrics.jsonl") if "loss" in point["metrics"]]
    assert steps == sorted(set(steps)) == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_statistics_of_bf16_weights_are_not_rounded_by_a_restart(
        ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(precision="bf16", optimizer="adafactor", max_steps=4, checkpoint_steps=2)
    stages = [SftStage(output=tmp_path / name, model=str(ready / "moe"), data=ready / "data", sft=config) for name in "ab"]
    interrupted_after(3, stages[0], monkeypatch)
    for stage in stages:
        run_stage(stage)
    assert file_digest(tmp_path / "a" / "model.safetensors") == file_digest(tmp_path / "b" / "model.safetensors")


@pytest.mark.parametrize("max_steps", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_a_run_killed_after_its_last_step_is_not_trained_further(
        max_steps: int | None, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(max_steps=max_steps, schedule="constant", checkpoint_steps=2)
    undisturbed = sft(ready, tmp_path / "undisturbed", "moe", config)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("xft_core.stages.sft._save", killed)
        with pytest.raises(KeyboardInterrupt):
            sft(ready, tmp_path / "killed", "moe", config)
    resumed = sft(ready, tmp_path / "killed", "moe", config)
    digests = [file_digest(tmp_path / name / "model.safetensors") for name in ("killed", "undisturbed")]
    assert digests[0] == digests[1]
    for name in ("steps", "train_loss", "held_out_nll", "held_out_nll_before"):
        assert resumed[name] == undisturbed[name]
    points = read_metrics(tmp_path / "killed" / "metrics.jsonl")
    assert [point["step"] for point in points if "held_out_nll" in point["metrics"]] == [0, resumed["steps"]]
    steps = [point["step"] for point in points if "loss" in point["metrics"]]
    assert steps == list(range(1, int(resumed["steps"]) + 1))


def test_max_steps_is_a_limit_and_no_more(ready: Path, tmp_path: Path) -> None:
    whole = sft(ready, tmp_path / "a", "dense", changed(epochs=1))["steps"]
    assert sft(ready, tmp_path / "b", "dense", changed(epochs=1, max_steps=1000))["steps"] == whole
    assert sft(ready, tmp_path / "c", "dense", changed(epochs=1, max_steps=2))["steps"] == 2


@pytest.mark.slow
def test_the_reported_loss_is_that_of_the_saved_model_after_mixed_precision(ready: Path, tmp_path: Path) -> None:
    metrics = sft(ready, tmp_path / "out", "moe", changed(precision="bf16_mixed"))
    saved = load_model(tmp_path / "out", torch.float32)
    assert held_out_loss(saved, load_rows(ready / "data", "held_out")).nll == pytest.approx(metrics["held_out_nll"], abs=1e-6)


def test_no_activations_outlive_a_step_with_gradient_checkpointing(ready: Path, tmp_path: Path) -> None:
    config = changed(gradient_checkpointing=True, max_steps=1)
    model = load_model(ready / "moe", torch.float32)
    data = PackedRows(load_rows(ready / "data", "train"), 160, packing=True)
    (tmp_path / "checkpoints").mkdir()
    train(model, data, config, 0, tmp_path / "checkpoints", MetricsLog(tmp_path / "metrics.jsonl"), ChecksConfig())
    assert all(block.routing is None for block in moe_blocks(model))


@pytest.mark.slow
def test_a_training_that_diverges_is_named_or_stops_and_goes_on_when_told_to(ready: Path, tmp_path: Path) -> None:
    wild = changed(learning_rate=1.0, epochs=2, optimizer="adafactor", schedule="constant")
    metrics = sft(ready, tmp_path / "reported", "moe", wild)
    assert 0 < metrics["diverged_at_step"] < metrics["steps"]
    stopping = SftStage(output=tmp_path / "stopped", model=str(ready / "moe"), data=ready / "data", sft=wild,
                        checks=ChecksConfig(diverging_loss="stop"))
    with pytest.raises(RunWentWrong, match=f"diverged: at step {metrics['diverged_at_step']}"):
        run_stage(stopping)
    assert not stopping.output.exists()
    resumed = run_stage(stopping.model_copy(update={"checks": ChecksConfig()}))  # the same key, so its checkpoints are used
    assert resumed.manifest.metrics["held_out_nll"] == metrics["held_out_nll"]


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0, reason="no user namespaces here")
@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [100, 300, 700])
def test_a_disk_that_fills_while_training_is_a_message(kilobytes: int, ready: Path, tmp_path: Path) -> None:
    """On a real small disk: safetensors cannot write the weights at 100 KB, nor torch the optimizer at 300 and 700 KB."""
    (tmp_path / "disk").mkdir()
    stage = SftStage(output=tmp_path / "disk" / "out", model=str(ready / "moe"), data=ready / "data", sft=FAST)
    (tmp_path / "stage.json").write_text(stage.model_dump_json())
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs {tmp_path}/disk"
    command = f"{mount} && exec {sys.executable} -m xft_core sft {tmp_path}/stage.json"
    result = subprocess.run(["unshare", "-Urm", "sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "error: No space left while writing" in result.stderr and "Traceback" not in result.stderr


def test_a_loss_that_is_no_number_stops_with_advice(ready: Path, tmp_path: Path) -> None:
    broken = dense_model(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingFailed, match=r"The loss is nan at step 1.*Lower sft.learning_rate"):
        run_stage(SftStage(output=tmp_path / "out", model=str(broken), data=ready / "data", sft=FAST))
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_no_inputs_are_refused(ready: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory"):
        sft(ready, tmp_path / "out", "absent/deep")
    stage = SftStage(output=tmp_path / "out", model=str(ready / "dense"), data=ready / "dense", sft=FAST)
    with pytest.raises(DataError, match="not prepared data"):
        run_stage(stage)


def test_data_prepared_with_another_tokenizer_is_refused(ready: Path, tmp_path: Path) -> None:
    other = dense_model(tmp_path / "other", vocab_size=100)
    with pytest.raises(DataError, match="the model has 100 tokens: the data was prepared with another model's tokenizer"):
        run_stage(SftStage(output=tmp_path / "out", model=str(other), data=ready / "data", sft=FAST))


def test_rows_longer_than_the_models_context_are_refused(ready: Path, tmp_path: Path) -> None:
    short = dense_model(tmp_path / "short", max_position_embeddings=64)
    with pytest.raises(DataError, match="the model takes at most 64"):
        run_stage(SftStage(output=tmp_path / "out", model=str(short), data=ready / "data", sft=FAST))


@pytest.mark.slow
def test_experts_that_are_averaged_while_training_stay_closer(ready: Path, tmp_path: Path) -> None:
    """With a share of 0.5, the experts' final spread is far below that without averaging, and the mean still learns."""
    spreads = []
    for number, share in enumerate((0.0, 0.5)):
        metrics = sft(ready, tmp_path / str(number), "moe", changed(expert_averaging=share))
        assert metrics["held_out_nll"] < metrics["held_out_nll_before"] - 0.5
        experts = load_file(tmp_path / str(number) / "model.safetensors")["model.layers.0.mlp.experts.down_proj"]
        spreads.append(float((experts - experts.mean(0)).norm()))
    assert spreads[1] < 0.5 * spreads[0]


@pytest.mark.slow
def test_a_restart_changes_no_bit_of_averaged_experts(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(expert_averaging=0.3, precision="bf16", checkpoint_steps=2)
    stages = [SftStage(output=tmp_path / name, model=str(ready / "moe"), data=ready / "data", sft=config) for name in "ab"]
    interrupted_after(5, stages[0], monkeypatch)
    for stage in stages:
        run_stage(stage)
    assert file_digest(tmp_path / "a" / "model.safetensors") == file_digest(tmp_path / "b" / "model.safetensors")
