"""A stage's duration is recorded for later plans: with its work, if the whole stage ran here, and never failing a run."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tasks.execution import durations
from tasks.settings import settings
from xft_core.demo import DEMO_DIR
from xft_core.planning.inputs import data_size, problem_count
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import read_shape
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe
from xft_core.stages.configs import GenerateStage, SftStage, UpcycleStage
from xft_core.store.artifacts import publish
from xft_core.store.manifest import Manifest
from xft_core.store.workspace import Workspace

RECIPE = parse(Recipe, {"model": {"path": "demo:model"}, "evaluate": {"benchmarks": ["demo:benchmark.jsonl"]}}, [
    "data.path=demo:instruct.jsonl", "data.max_length=256", "data.max_rows=1700", "data.held_out_rows=200", "sft.batch_size=8",
    "sft.epochs=1"])
SHAPE = read_shape(DEMO_DIR / "model" / "config.json")
logger = logging.getLogger("tests.durations")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_HOME", str(tmp_path / "home"))


def artifact(stage: str, metrics: dict[str, Any], seconds: float = 30.0) -> tuple[Path, Manifest]:
    output = settings().artifacts / stage / "a1"
    workspace = Workspace(output)
    workspace.prepare()
    (workspace.output / "x.json").write_text("{}")
    return output, publish(workspace, output, stage=stage, stage_version=1, key="a1", parents={}, config={}, metrics=metrics,
                           provenance={}, seconds=seconds)


def test_the_work_noted_is_the_plans_own_measure() -> None:
    """With the demo's figures, a later plan of the same recipe needs no scaling, except for the uncertainty of its sample."""
    data, _ = artifact("prepare", {"train_rows": 1500, "held_out_rows": 200, "train_tokens": 198332})
    output, manifest = artifact("sft", {"steps": 145}, seconds=60)
    durations.note(RECIPE, "sft_moe", SftStage(output=output, model="demo:model", data=data), manifest, logger)
    found, = durations.remembered(RECIPE, SHAPE)["sft_moe"]
    plan = {stage.role: stage for stage in make_plan(RECIPE, SHAPE, data_size(RECIPE, DEMO_DIR / "model"))}
    assert found.seconds == 60 and found.work == pytest.approx(plan["sft_moe"].work, rel=0.1)
    assert durations.remembered(RECIPE, SHAPE)["sft_baseline"] == []


def test_answers_are_noted_by_problem_and_for_every_benchmark() -> None:
    for index, problems in enumerate((80, 40)):
        output, manifest = artifact(f"generate{index}", {"problems": problems})
        durations.note(RECIPE, f"generate_base_{index}", GenerateStage(output=output, model="demo:model"), manifest, logger)
    first, second = durations.remembered(RECIPE, SHAPE)["generate_base"]
    assert first.work == pytest.approx(2 * second.work)
    plan = {stage.role: stage for stage in make_plan(RECIPE, SHAPE, None, problem_count(RECIPE))}
    assert first.work == plan["generate_base"].work


def test_other_threads_are_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output, manifest = artifact("upcycle", {})
    durations.note(RECIPE, "upcycle", UpcycleStage(output=output), manifest, logger)
    assert len(durations.remembered(RECIPE, SHAPE)["upcycle"]) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert durations.remembered(RECIPE, SHAPE)["upcycle"] == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert durations.threads_of_a_stage() == settings().threads_per_slot


@pytest.mark.parametrize("role", ["prepare", "report", "evaluate_base_0", "lm_eval_base_0"])
def test_stages_that_are_not_planned_are_not_noted(role: str) -> None:
    output, manifest = artifact("other", {})
    durations.note(RECIPE, role, UpcycleStage(output=output), manifest, logger)
    assert not (settings().home / "rates.json").exists()


def test_what_cannot_be_noted_ends_no_run(caplog: pytest.LogCaptureFixture) -> None:
    output, manifest = artifact("upcycle", {})
    hub = parse(Recipe, {"model": {"path": "owner/not-in-the-cache"}}, [])
    durations.note(hub, "upcycle", UpcycleStage(output=output), manifest, logger)
    assert not (settings().home / "rates.json").exists()
    (settings().home / "rates.json").mkdir()
    durations.note(RECIPE, "upcycle", UpcycleStage(output=output), manifest, logger)
    assert "could not be recorded" in caplog.text
    output, manifest = artifact("sft", {"steps": 1})
    durations.note(RECIPE, "sft_moe", SftStage(output=output, model="demo:model", data=output), manifest, logger)
