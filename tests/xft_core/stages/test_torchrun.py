"""SFT and mixing in two processes (CPU, gloo): the same curve as one, resumed by either, and no hang when one of them ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tests.xft_core.interrupted import interrupted_after
from xft_core.data.packing import PackedRows
from xft_core.data.rows import load_rows
from xft_core.errors import RecipeError, XftError
from xft_core.mixing.coefficients import load_coefficients
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.recipe.load import parse
from xft_core.recipe.sections import MergeConfig, Recipe, SftConfig, UpcycleConfig
from xft_core.stages.configs import CompareStage, MixStage, ReportStage, SftStage, UpcycleStage
from xft_core.stages.run import run_stage, stage_key
from xft_core.store.curves import read_metrics
from xft_core.training.response_loss import response_loss

# 21 rows, 2 per forward pass, 4 per step: 6 steps per epoch, the last of which has one pass of one row.
SFT = SftConfig(
    epochs=2, batch_size=4, micro_batch_size=2, learning_rate=2e-3, precision="fp32", packing=False, checkpoint_steps=2,
    log_steps=1, warmup_steps=0, max_steps=8)


def stage(ready: Path, output: Path, model: str, **changes: Any) -> SftStage:
    sft = SftConfig(**(SFT.model_dump() | changes))
    return SftStage(output=output, model=str(ready / model), data=ready / "data", sft=sft)


def curve(output: Path) -> dict[int, dict[str, float]]:
    path = next(place / "metrics.jsonl" for place in (output, output.with_name(output.name + ".partial")) if place.is_dir())
    return {point["step"]: point["metrics"] for point in read_metrics(path) if "loss" in point["metrics"]}


def assert_same_curve(found: Path, expected: Path, tolerance: float = 1e-4) -> None:
    points, wanted = curve(found), curve(expected)
    assert list(points) == list(wanted) == list(range(1, len(wanted) + 1))
    for name in set(wanted[1]) - {"tokens_per_second"}:
        assert [points[step][name] for step in wanted] == pytest.approx([wanted[step][name] for step in wanted], abs=tolerance)


def test_two_processes_go_on_where_one_stopped_with_the_same_curve(
        ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise and balance loss, Adafactor, experts without tokens, and an epoch whose last step is incomplete."""
    alone = run_stage(stage(ready, tmp_path / "alone", "moe")).manifest
    interrupted_after(3, stage(ready, tmp_path / "both", "moe"), monkeypatch)  # its last checkpoint is at step 2
    environment = dict(os.environ)
    both = run_stage(stage(ready, tmp_path / "both", "moe", num_processes=2)).manifest
    assert dict(os.environ) == environment, "the launcher's variables stay behind: what starts next would inherit them"
    assert both.key == alone.key
    assert_same_curve(tmp_path / "both", tmp_path / "alone")
    assert min(point["expert_load_min"] for point in curve(tmp_path / "both").values()) == 0
    for name in ("held_out_nll_before", "held_out_nll", "router_entropy", "train_loss"):
        assert both.metrics[name] == pytest.approx(alone.metrics[name], abs=1e-4)
    assert {entry.path for entry in both.files} == {entry.path for entry in alone.files}


@pytest.mark.parametrize(("upcycle", "changes"), [
    ({"num_experts": 4, "num_experts_per_tok": 4, "routing": "top_p", "target_active": 2.5, "shared_gate": "token"},
     {"balance_scope": "step", "router_gradient": "dense", "diversity_weight": 0.5, "score_variance_weight": 0.1,
      "balance_loss_weight": 0.1, "optimizer": "adafactor"}),
    ({"num_experts": 4, "num_experts_per_tok": 3}, {"balance": "bias", "optimizer": "adamw"}),
    pytest.param({"num_experts": 4, "num_experts_per_tok": 1, "shared_expert": False, "router": "by_example"}, {},
                 marks=pytest.mark.slow),
    pytest.param({"num_experts": 4, "num_experts_per_tok": 2, "router": "random", "shared_gate": "token"},
                 {"gradient_checkpointing": True}, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_two_processes_route_as_one(
        upcycle: dict[str, Any], changes: dict[str, Any], ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run resumes an interrupted one with two processes. The checkpoint includes the routers' other state."""
    moe = tmp_path / "moe"
    run_stage(UpcycleStage(output=moe, model=str(ready / "dense"), upcycle=UpcycleConfig(**upcycle)))
    alone = run_stage(stage(ready, tmp_path / "alone", str(moe), **changes)).manifest
    interrupted_after(3, stage(ready, tmp_path / "both", str(moe), **changes), monkeypatch)
    both = run_stage(stage(ready, tmp_path / "both", str(moe), num_processes=2, **changes)).manifest
    assert both.key == alone.key
    assert_same_curve(tmp_path / "both", tmp_path / "alone", 5e-4)
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "alone"))
    assert weights.keys() == expected.keys()
    for name in weights:
        assert (weights[name] - expected[name]).abs().max() < 5e-3, name


@pytest.mark.slow
def test_averages_of_two_processes_are_those_of_one(
        ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages of weights over the training, and of experts after each step, divided unevenly between processes."""
    changes = {"average": "ema", "expert_averaging": 0.2, "optimizer": "adamw", "batch_size": 8, "micro_batch_size": 4,
               "checkpoint_steps": 1}
    alone = run_stage(stage(ready, tmp_path / "alone", "apart/moe", **changes)).manifest
    interrupted_after(2, stage(ready, tmp_path / "both", "apart/moe", **changes), monkeypatch)
    both = run_stage(stage(ready, tmp_path / "both", "apart/moe", num_processes=2, **changes)).manifest
    assert both.key == alone.key
    for name in ("held_out_nll", "held_out_nll_average"):
        assert both.metrics[name] == pytest.approx(alone.metrics[name], abs=1e-4)
    for place in ("", "average"):
        one, two = (load_file(tmp_path / name / place / "model.safetensors") for name in ("alone", "both"))
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], atol=2e-4) for name in one)


def test_two_processes_mix_as_one(ready: Path, tmp_path: Path) -> None:
    merge = MergeConfig(batch_size=6, micro_batch_size=2, precision="fp32", learning_rate=0.1, shared_expert_weight=None)
    made = {}
    for number in (1, 2):
        config = MixStage(output=tmp_path / str(number), model=str(ready / "apart" / "moe"), data=ready / "data", merge=merge,
                          num_processes=number)
        made[number] = run_stage(config).manifest
    assert made[1].key == made[2].key
    found, expected = (load_coefficients(tmp_path / str(number)) for number in (2, 1))
    assert (found - expected).abs().max() < 1e-5
    assert made[1].metrics["movement_max"] > 0.01
    assert made[2].metrics["held_out_nll_merged"] == pytest.approx(made[1].metrics["held_out_nll_merged"], abs=1e-5)


def test_gradients_of_parts_of_a_batch_add_up_to_that_of_the_whole(ready: Path) -> None:
    """Processes sum them, in fp64 to 1e-6, because the projection on the experts is linear."""
    rows = load_rows(ready / "data", "train")
    data = PackedRows(rows, max(rows.lengths()), packing=True)
    found = []
    with MixtureReader(ready / "apart" / "moe") as mixture:
        mixed = MixedModel(mixture, torch.float64, torch.device("cpu"))
        mixed.apply(torch.full((mixture.num_layers, mixture.num_experts), 0.25, dtype=torch.float64))
        for part in ([0], [1, 2], [0, 1, 2], []):
            mixed.want_gradient()
            for number in part:
                response_loss(mixed.model, data.collate([data[number]])).backward()
            found.append(mixed.weight_gradient())
    first, second, whole, nothing = found
    assert whole.abs().max() > 1e-3
    assert (first + second - whole).abs().max() < 1e-6 * whole.abs().max()
    assert not nothing.any()


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"micro_batch_size \(8\) times 16 processes does not divide batch_size \(64\): "
                                          "a micro_batch_size of 4 does"):
        parse(Recipe, {}, ["sft.num_processes=8", "sft.num_nodes=2"])
    with pytest.raises(ValidationError, match="a batch_size that is a multiple of 3, or fewer processes"):
        SftConfig(num_processes=3)


def test_several_machines_need_an_address(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_RENDEZVOUS", "nowhere")
    with pytest.raises(RecipeError, match="XFT_RENDEZVOUS is 'nowhere': set it to host:port"):
        run_stage(stage(ready, tmp_path / "out", "dense", num_nodes=2))


def test_the_number_of_processes_is_no_part_of_any_key(ready: Path, tmp_path: Path) -> None:
    place = {"output": tmp_path / "out"}
    keys, of_mixing, of_reports, of_comparisons = set(), set(), set(), set()
    for changes in ({}, {"num_processes": 2}, {"num_nodes": 2}):
        keys.add(stage_key(stage(ready, tmp_path / "out", "dense", **changes)))
        of_mixing.add(stage_key(MixStage(**place, model=str(ready / "moe"), data=ready / "data", **changes)))
        recipe = parse(Recipe, {}, [f"sft.{name}={value}" for name, value in changes.items()])
        of_reports.add(stage_key(ReportStage(**place, artifacts={}, recipe=recipe)))
        of_comparisons.add(stage_key(CompareStage(**place, reports={}, recipe=recipe, grid=[])))
    assert [len(found) for found in (keys, of_mixing, of_reports, of_comparisons)] == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "changes", "tolerance"), [
    ("moe", {"optimizer": "adamw", "gradient_checkpointing": True, "packing": True, "max_grad_norm": 1.0}, 1e-4),
    ("moe", {"precision": "bf16"}, 0.1), ("moe", {"precision": "bf16_mixed", "gradient_checkpointing": True}, 0.05),
    ("dense", {"weight_decay": 0.1}, 1e-4), ("tied", {"optimizer": "adamw"}, 1e-4)], ids=str)
def test_every_option_gives_the_curve_of_one(
        model: str, changes: dict[str, Any], tolerance: float, ready: Path, tmp_path: Path) -> None:
    run_stage(stage(ready, tmp_path / "alone", model, **changes))
    run_stage(stage(ready, tmp_path / "both", model, num_processes=2, **changes))
    assert_same_curve(tmp_path / "both", tmp_path / "alone", tolerance)


def started(config: SftStage) -> subprocess.Popen[str]:
    path = config.output.with_suffix(".json")
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "xft_core", "sft", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def workers_of(output: Path) -> list[int]:
    """Return the process IDs of a stage's processes, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"xft_core.stages.torchrun_worker" in words and any(word.startswith(str(output).encode()) for word in words):
            found.append(int(path.parent.name))
    return sorted(found)


def wait_for(happened: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def killed_and_gone_on_with(
        ready: Path, tmp_path: Path, victim: int | None, number: signal.Signals, status: int, message: str) -> None:
    """Kill one of two processes, or their parent (None). Nothing hangs or is left behind, no stack trace is shown, and one
    process alone continues the curve."""
    config = stage(ready, tmp_path / "killed", "moe", max_steps=None, epochs=40)
    process = started(config.model_copy(update={"sft": config.sft.model_copy(update={"num_processes": 2})}))
    checkpoints = tmp_path / "killed.partial" / "checkpoints"
    wait_for(lambda: (checkpoints / "checkpoint-2" / "whole").is_file())
    workers = workers_of(tmp_path / "killed.partial")
    assert len(workers) == 2
    os.kill(process.pid if victim is None else workers[victim], number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == status and re.search(message, said), said
    assert "Traceback" not in said
    wait_for(lambda: not workers_of(tmp_path / "killed.partial"))
    left = max(int(path.parent.name.split("-")[1]) for path in checkpoints.glob("*/whole"))
    # The key is the same only with the same steps, so continue for one more step and stop there.
    expected = stage(ready, tmp_path / "alone", "moe", max_steps=None, epochs=40)
    with pytest.MonkeyPatch.context() as patched:
        interrupted_after(left + 1, config, patched)
        interrupted_after(left + 1, expected, patched)
    assert_same_curve(tmp_path / "killed", tmp_path / "alone")


@pytest.mark.slow
def test_where_one_of_two_was_killed_one_alone_goes_on(ready: Path, tmp_path: Path) -> None:
    killed_and_gone_on_with(
        ready, tmp_path, 1, signal.SIGKILL, 137,
        r"error: sft: process 1 of 2 \(from 0\) was stopped from outside \(SIGKILL\)\. .* lower sft\.micro_batch_size")


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number", "status", "message"), [
    (0, signal.SIGKILL, 137, r"error: sft: process 0 of 2"),
    (1, signal.SIGTERM, 75, r"error: sft: process 1 of 2 \(from 0\) was stopped from outside \(SIGTERM\)\.$"),
    (None, signal.SIGTERM, 75, r"error: sft: stopped from outside \(SIGTERM\)"),
    (None, signal.SIGINT, 130, "error: interrupted"),
    (None, signal.SIGKILL, -signal.SIGKILL, "")], ids=str)
def test_whichever_is_ended_and_however(
        victim: int | None, number: signal.Signals, status: int, message: str, ready: Path, tmp_path: Path) -> None:
    killed_and_gone_on_with(ready, tmp_path, victim, number, status, message)


@pytest.mark.slow
def test_a_mistake_in_one_process_is_told_in_its_words(ready: Path, tmp_path: Path) -> None:
    with pytest.raises(XftError, match=r"not prepared data: it has no valid train\.safetensors"):
        run_stage(stage(ready, tmp_path / "out", "dense", num_processes=2).model_copy(update={"data": ready / "dense"}))


@pytest.mark.slow
def test_a_fault_in_one_process_is_shown_once(ready: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ready / "moe", tmp_path / "broken")
    (tmp_path / "broken" / "manifest.json").unlink()
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.0.mlp.router.output.weight"][:] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors")
    config = stage(ready, tmp_path / "out", "moe", num_processes=2)
    with pytest.raises(RuntimeError, match="the router's logits contain NaN"):
        run_stage(config.model_copy(update={"model": str(tmp_path / "broken")}))
    assert capfd.readouterr().err.count("Traceback") == 1


@pytest.mark.slow
def test_two_machines(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine plays both: one process each, the second through ``join``. Then again, and the second one is lost."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("XFT_RENDEZVOUS", f"localhost:{free.getsockname()[1]}")
    process = started(stage(ready, tmp_path / "both", "moe", num_nodes=2))
    joined = join(tmp_path / "both.partial")
    (_, said), (_, told) = process.communicate(timeout=300), joined.communicate(timeout=300)
    assert (process.returncode, joined.returncode) == (0, 0), said + told
    assert "sft 8/8" in said and "sft 8/8" not in told
    run_stage(stage(ready, tmp_path / "alone", "moe"))
    assert_same_curve(tmp_path / "both", tmp_path / "alone")
    process = started(stage(ready, tmp_path / "lost", "moe", num_nodes=2, max_steps=None, epochs=40))
    joined = join(tmp_path / "lost.partial")
    wait_for(lambda: (tmp_path / "lost.partial" / "checkpoints" / "checkpoint-2" / "whole").is_file())
    joined.kill()
    (_, said), _ = process.communicate(timeout=300), joined.communicate()
    assert process.returncode == 75 and "error: sft: one of its 2 processes was lost" in said and "Traceback" not in said
    wait_for(lambda: not workers_of(tmp_path / "lost.partial"))


def join(workspace: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xft_core", "join", str(workspace / "processes"), "--node", "1"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
