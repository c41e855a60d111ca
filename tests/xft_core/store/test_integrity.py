"""Flipped bits on disk: whatever a stage reads back, it gives the undisturbed result or a clear error."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories import dense_model
from xft_core.errors import ArtifactError, CheckpointError
from xft_core.recipe.sections import DataConfig, MergeConfig, SftConfig, UpcycleConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs import MixStage, PrepareStage, SftStage, UpcycleStage
from xft_core.stages.run import run_stage, stage_key
from xft_core.store import checkpoints
from xft_core.store.artifacts import find, verify
from xft_core.store.curves import read_metrics
from xft_core.store.manifest import Manifest, read_manifest
from xft_core.training.optimizer_state import load_state, save_state

SFT = SftConfig(
    epochs=1, max_steps=6, batch_size=4, micro_batch_size=4, learning_rate=5e-3, precision="fp32", optimizer="adamw",
    checkpoint_steps=2, log_steps=1, warmup_steps=0)
MERGE = MergeConfig(
    learning_rate=0.05, epochs=60, max_steps=30, batch_size=2, micro_batch_size=2, warmup_steps=0, precision="fp32")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an upcycled model and prepared data."""
    root = tmp_path_factory.mktemp("integrity")
    dense_model(root / "dense")
    rows = [{"instruction": f"Add {i}", "response": f"x + {i}"} for i in range(30)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=4)
    run_stage(PrepareStage(output=root / "data", model=str(root / "dense"), data=data))
    run_stage(UpcycleStage(output=root / "moe", model=str(root / "dense"), upcycle=UpcycleConfig(
        num_experts=3, num_experts_per_tok=2)))
    return root


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit somewhere in a file."""
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def killed(stage: StageConfig, monkeypatch: pytest.MonkeyPatch, place: str) -> Path:
    """Run a stage until it calls ``place``, where it dies; return its work in progress."""
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(place, die)
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage)
    return stage.output.with_name(stage.output.name + ".partial")


def spoiled_everywhere(
    stage: StageConfig, partial: Path, expected: Manifest, names: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resume from copies of ``partial``, each with one bit flipped, one copy for every file."""
    whole = partial.with_name("whole.partial")
    partial.rename(whole)
    newest = checkpoints.newest_whole(whole / "checkpoints")
    assert newest is not None
    places = [path for path in whole.rglob("*") if path.is_file() and path.stat().st_size and (
        path.parent == newest or not path.parent.name.startswith(checkpoints.PREFIX))]
    files = sorted(path.relative_to(whole).as_posix() for path in places)
    assert set(names) <= {path.name for path in places}
    for number, name in enumerate(files):
        shutil.rmtree(stage.output, ignore_errors=True)
        shutil.copytree(whole, partial)
        flip(partial / name, random.Random(number))
        again = run_stage(stage).manifest
        assert again.digest == expected.digest, f"a bit that flipped in {name} changed the result"
        for metric in ("held_out_nll", "held_out_nll_before", "train_loss", "steps", "held_out_nll_merged"):
            assert again.metrics.get(metric) == expected.metrics.get(metric), name
        curve = [(point["step"], point["metrics"].get("loss")) for point in read_metrics(stage.output / "metrics.jsonl")]
        assert curve == [(point["step"], point["metrics"].get("loss")) for point in read_metrics(
            stage.output.with_name("undisturbed") / "metrics.jsonl")], name


@pytest.mark.slow
def test_a_flipped_bit_in_work_in_progress_of_sft_never_reaches_the_model(
        ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = SftStage(output=tmp_path / "undisturbed", model=str(ready / "moe"), data=ready / "data", sft=SFT)
    expected = run_stage(stage).manifest
    stage = stage.model_copy(update={"output": tmp_path / "out"})
    partial = killed(stage, monkeypatch, "xft_core.stages.sft._save")
    names = ["model.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json", "whole", "key",
             "trainer_state.json", "metrics.jsonl", "held_out_before.jsonl"]
    assert not [path for path in partial.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    spoiled_everywhere(stage, partial, expected, names, monkeypatch)


@pytest.mark.slow
def test_a_flipped_bit_in_work_in_progress_of_mix_never_reaches_the_coefficients(
        ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = MixStage(output=tmp_path / "undisturbed", model=str(ready / "moe"), data=ready / "data", merge=MERGE)
    expected = run_stage(stage).manifest
    stage = stage.model_copy(update={"output": tmp_path / "out"})
    partial = killed(stage, monkeypatch, "xft_core.mixing.learning.keep_newest")
    spoiled_everywhere(stage, partial, expected, ["mixing.safetensors", "whole", "metrics.jsonl", "key"], monkeypatch)


def test_a_flipped_bit_in_a_published_artifact_is_found_and_the_artifact_rebuilt(ready: Path, tmp_path: Path) -> None:
    stage = UpcycleStage(output=tmp_path / "moe", model=str(ready / "dense"), upcycle=UpcycleConfig(num_experts=2,
                                                                                                   num_experts_per_tok=2))
    whole, key = run_stage(stage).manifest, stage_key(stage)
    names = sorted(path.name for path in stage.output.iterdir())
    rng = random.Random(0)
    for number in range(200):
        name = "manifest.json" if number % 2 else names[number // 2 % len(names)]
        before = (stage.output / name).read_bytes()
        flip(stage.output / name, rng)
        try:
            assert verify(stage.output) == whole  # a bit in the manifest's white space, which carries no information
        except ArtifactError:
            assert find(stage.output, key) is None
            damaged, = tmp_path.glob("moe.damaged*")
            damaged.rename(stage.output)
        (stage.output / name).write_bytes(before)
    flip(stage.output / "model.safetensors", rng)
    assert run_stage(stage).manifest.digest == whole.digest and verify(stage.output)


def test_every_field_of_a_manifest_is_under_its_sum(ready: Path, tmp_path: Path) -> None:
    shutil.copytree(ready / "moe", tmp_path / "moe")
    path = tmp_path / "moe" / "manifest.json"
    content = json.loads(path.read_bytes())
    for name in content:
        other = {"seconds": 1e9, "created": "2000-01-01T00:00:00Z", "stage_version": 99, "schema_version": 3, "files": [],
                 "metrics": {"parameters": 1.0}}.get(name, {} if isinstance(content[name], dict) else "other")
        if other != content[name]:
            path.write_text(json.dumps(content | {name: other}))
            with pytest.raises(ArtifactError, match=r"altered|damaged|another version"):
                read_manifest(tmp_path / "moe")
    path.write_text(json.dumps(content))
    assert read_manifest(tmp_path / "moe").metrics == content["metrics"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 10, 9):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "state.json").write_text(str(step))
        checkpoints.seal(checkpoint)
    flip(tmp_path / "checkpoint-10" / "state.json", random.Random(1))
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-9"
    assert "checkpoint-10/state.json' was altered" in caplog.text and not (tmp_path / "checkpoint-10").exists()
    (tmp_path / "checkpoint-9" / "optimizer.pt").write_bytes(b"\x80\x04.")  # a pickle that someone put there
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-2"
    checkpoints.keep_newest(tmp_path, 0)
    assert checkpoints.newest_whole(tmp_path) is None


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    for make in (torch.optim.AdamW, torch.optim.Adafactor):
        optimizer = make(model.parameters(), lr=0.1)
        model(torch.ones(3)).sum().backward()
        optimizer.step()
        state = optimizer.state_dict() | {"more": (1, 2.5, None, True, "x", [0.1 + 0.2, float("inf")], {3: torch.tensor(7)})}
        save_state(tmp_path, "optimizer", state)
        found = load_state(tmp_path, "optimizer")
        assert str(found) == str(state) and found["state"].keys() == state["state"].keys()
        for number, values in state["state"].items():
            for name, value in values.items():
                assert torch.equal(found["state"][number][name], value) if isinstance(value, torch.Tensor) else (
                    found["state"][number][name] == value)
    with pytest.raises(TypeError, match="cannot be written as state"):
        save_state(tmp_path, "other", {"path": tmp_path})


@pytest.mark.parametrize("content", ["[" * 9000, '{"tensor": 99}', '{"dict": 3}', '{"dict": [[[1], 2]]}', '{"eval": ["x"]}',
                                     '{"dict": [], "tuple": []}', "nonsense", '{"dict": [["a"]]}'])
def test_state_that_no_one_wrote_is_refused(content: str, tmp_path: Path) -> None:
    save_state(tmp_path, "optimizer", {"step": torch.tensor(1)})
    (tmp_path / "optimizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="holds no state"):
        load_state(tmp_path, "optimizer")
