"""Experts that start as different models: the origin of each part, equal models give the model itself, and restarts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.factories import dense_model, each_family
from tests.xft_core.interrupted import interrupted_after
from tests.xft_core.stages.test_sft import changed, ready, sft  # noqa: F401  (a fixture)
from xft_core.data.rows import load_rows
from xft_core.errors import CheckpointError, DataError
from xft_core.files.digests import file_digest
from xft_core.models.loading import load_model
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.configs import SftStage, UpcycleStage
from xft_core.stages.run import run_stage, stage_key
from xft_core.training.snapshots import snapshot_steps

MOE = UpcycleConfig(num_experts=3, num_experts_per_tok=2)


def logits_of(directory: Path) -> torch.Tensor:
    return load_model(directory, torch.float32)(input_ids=torch.arange(12)[None]).logits


def upcycled(output: Path, model: Path, *experts: Path) -> UpcycleStage:
    numbered = {str(number): str(path) for number, path in enumerate(experts, start=1)}
    return UpcycleStage(output=output, model=str(model), upcycle=MOE, experts=numbered)


@pytest.mark.parametrize("family", each_family())
def test_experts_that_all_are_the_model_make_the_model(family: str, tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense", family)
    run_stage(upcycled(tmp_path / "moe", dense, dense, dense))
    assert (logits_of(tmp_path / "moe") - logits_of(dense)).abs().max() <= 1e-5


def test_each_expert_is_its_models_ffn_and_all_else_is_the_models(tmp_path: Path) -> None:
    last, *experts = (dense_model(tmp_path / str(seed), seed=seed) for seed in range(3))
    run_stage(upcycled(tmp_path / "moe", last, *experts))
    moe = load_file(tmp_path / "moe" / "model.safetensors")
    dense = [load_file(path / "model.safetensors") for path in (last, *experts)]
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        assert torch.equal(moe[name], dense[0][name])
    mlp = "model.layers.1.mlp"
    assert torch.equal(moe[f"{mlp}.shared_expert.down_proj.weight"], dense[0][f"{mlp}.down_proj.weight"])
    for number in (1, 2):
        gate, up = (dense[number][f"{mlp}.{part}_proj.weight"] for part in ("gate", "up"))
        assert torch.equal(moe[f"{mlp}.experts.gate_up_proj"][number - 1], torch.cat([gate, up]))
        assert torch.equal(moe[f"{mlp}.experts.down_proj"][number - 1], dense[number][f"{mlp}.down_proj.weight"])


def test_experts_of_another_form_or_number_are_refused(tmp_path: Path) -> None:
    dense, other = dense_model(tmp_path / "dense"), dense_model(tmp_path / "other", intermediate_size=64)
    with pytest.raises(CheckpointError, match="has another form"):
        run_stage(upcycled(tmp_path / "a", dense, dense, other))
    with pytest.raises(CheckpointError, match="1 models are given for 2 routed experts"):
        run_stage(upcycled(tmp_path / "b", dense, dense))


def test_the_key_without_experts_is_what_it_was(tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense")
    stage = UpcycleStage(output=tmp_path / "a", model=str(dense), upcycle=MOE)
    assert stage.settings() == {"seed": 0, "upcycle": {
        "num_experts": 3, "num_experts_per_tok": 2, "normalization": "xft", "shared_expert": True, "router_noise": True,
        "store_experts": "once"}}
    assert stage_key(upcycled(tmp_path / "a", dense, dense, dense)) != stage_key(stage)


@pytest.mark.slow
def test_snapshots_are_the_weights_of_their_steps_and_survive_a_restart(
        ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    config = changed(epochs=2, checkpoint_steps=2, schedule="constant")
    stages = [SftStage(output=tmp_path / name, model=str(ready / "dense"), data=ready / "data", sft=config, snapshots=3)
              for name in "ab"]
    interrupted_after(7, stages[0], monkeypatch)
    for taken in (tmp_path / "a.partial" / "checkpoints").glob("snapshot-*"):
        taken.unlink()  # as on another machine, which has only the checkpoints
    made = [run_stage(stage).manifest for stage in stages]
    assert made[0].digest == made[1].digest
    steps = snapshot_steps(3, made[0].metrics["steps"])
    for number, step in enumerate(steps, start=1):
        sft(ready, tmp_path / str(step), "dense", changed(epochs=2, schedule="constant", max_steps=step))
        assert file_digest(tmp_path / "a" / "snapshots" / str(number) / "model.safetensors") == file_digest(
            tmp_path / str(step) / "model.safetensors")
    load_model(tmp_path / "a" / "snapshots" / "1", torch.float32)


def test_parts_of_the_rows_are_disjoint_and_whole(ready: Path) -> None:  # noqa: F811
    rows = load_rows(ready / "data", "train")
    parts = [rows.part(number, 4, seed=3) for number in range(1, 5)]
    found = [tuple(part[index][0].tolist()) for part in parts for index in range(len(part))]
    assert sorted(found) == sorted(tuple(rows[index][0].tolist()) for index in range(len(rows)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert rows.part(1, 4, seed=4).lengths() != parts[0].lengths() or found[0] != tuple(rows.part(1, 4, seed=4)[0][0].tolist())
    with pytest.raises(DataError, match="cannot be divided into 1000 parts"):
        rows.part(1, 1000, seed=0)
