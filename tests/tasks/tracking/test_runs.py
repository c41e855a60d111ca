"""Real MLflow on real SQLite: parents, children, curves, statuses, files."""

import json
import logging
import subprocess
import time
from pathlib import Path

import pytest

from tasks.publishing.headline import headline, of_variant
from tasks.references import PipelineRun
from tasks.settings import FIRST_VIEW, settings
from tasks.tracking import runs
from tasks.tracking.client import TrackingUnavailable, client
from tasks.tracking.files import log_directory
from tasks.tracking.parameters import ALWAYS, OF_STAGES
from tasks.tracking.stage_run import StageRun
from xft_core.recipe.load import load_recipe
from xft_core.recipe.sections import Recipe
from xft_core.store.curves import MetricsLog
from xft_core.store.manifest import Manifest


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "stage": "sft", "stage_version": 1, "key": "k" * 64, "digest": "d" * 64, "files": [], "parents": {},
        "config": {"seed": 0, "sft": {"epochs": 1.0, "max_steps": None}}, "versions": {},
        "created": "2026-11-25T12:00:00Z", "seconds": 2.5,
        "metrics": {"held_out_nll": 0.5, "note": "text", "layers": [1, 2]}, "provenance": {}}
    return Manifest.model_validate(fields | changes)


def curve(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(run_id, name)]


def points(*steps: int) -> list[dict[str, object]]:
    return [{"step": step, "time": 1000.0 + step, "metrics": {"loss": 1 / step}} for step in steps]


def test_the_parent_has_the_fields_that_tell_runs_apart_and_the_whole_recipe_as_a_file(
    run: PipelineRun, tmp_path: Path,
) -> None:
    parameters = client().get_run(run.mlflow_run_id).data.params
    assert set(parameters) == set(ALWAYS)  # the recipe has only defaults otherwise
    assert parameters["merge.shared_expert_weight"] == "0.75"
    changed = run.recipe.model_copy(update={"sft": run.recipe.sft.model_copy(update={"max_steps": 7})})
    other = client().get_run(runs.open_run(changed, "another", "tiny").mlflow_run_id)
    assert set(other.data.params) == {*ALWAYS, "sft.max_steps"}
    shown = client().download_artifacts(other.info.run_id, "recipe.yaml", str(tmp_path))
    assert load_recipe(Path(shown)) == changed


def test_a_run_has_a_counter_a_user_a_commit_and_links(run: PipelineRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_ONE_ADDRESS", "1")
    again = client().get_run(runs.open_run(run.recipe, "f-2", "tiny").mlflow_run_id)
    third = client().get_run(runs.open_run(run.recipe, "f-3", "tiny").mlflow_run_id)
    assert [again.info.run_name, third.info.run_name] == ["tiny (2)", "tiny (3)"]
    tags = third.data.tags
    assert tags["mlflow.user"] and tags["mlflow.source.name"] == "xft pipeline"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    if commit.returncode == 0:
        assert tags["mlflow.source.git.commit"] == commit.stdout.strip()
    assert "](/runs/flow-run/f-3)" in tags["mlflow.note.content"]


def test_an_experiment_opens_among_runs_and_is_described_once(run: PipelineRun) -> None:
    tags = client().get_experiment(run.run_experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "Runs of the pipeline" in tags["mlflow.note.content"]
    assert "metrics.`merged/plus_pass_at_1`" in json.loads(tags[FIRST_VIEW])["selectedColumns"]
    client().set_experiment_tag(run.run_experiment_id, "mlflow.note.content", "mine")
    runs.open_run(run.recipe, "another", "tiny")
    assert client().get_experiment(run.run_experiment_id).tags["mlflow.note.content"] == "mine"


def test_curves_are_on_the_pipelines_run_as_they_happen(
    run: PipelineRun, logger: logging.Logger, tmp_path: Path,
) -> None:
    for role, name in (("sft_moe", "moe/loss"), ("sft_baseline", "sft/loss"), ("mix", "mix/loss")):
        child = StageRun(run, role.partition("_")[0], role, logger)
        assert child.log_points(points(1, 2, 3))
        assert curve(run.mlflow_run_id, name) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3, 4):
        log.log(step, {"loss": 1 / step, "router_entropy": 0.5, "expert_load/1": 0.5, "held_out_nll": 2.0})
    moe = StageRun(run, "sft", "sft_moe", logger, again=True)
    moe.finish(tmp_path, manifest(), reused=True)
    assert [step for step, _ in curve(run.mlflow_run_id, "moe/loss")] == [1, 2, 3, 4]
    shown = client().get_run(run.mlflow_run_id).data.metrics
    assert {"moe/router_entropy", "moe/held_out_nll_while_training"} <= shown.keys()
    assert "moe/held_out_nll" not in shown  # the name is reserved for the final number
    assert not any("expert_load/" in name for name in shown)


def test_a_retried_flow_run_has_one_parent(run: PipelineRun) -> None:
    runs.end_run(run.mlflow_run_id, "FAILED")
    again = runs.open_run(run.recipe, run.flow_run_id, "tiny")
    assert again.mlflow_run_id == run.mlflow_run_id
    assert client().get_run(run.mlflow_run_id).info.status == "RUNNING"


def test_a_child_ends_with_its_numbers(run: PipelineRun, logger: logging.Logger, tmp_path: Path) -> None:
    child = StageRun(run, "sft", "sft_moe", logger)
    child.finish(tmp_path, manifest(), reused=False)
    assert child.id is not None
    found = client().get_run(child.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "sft-moe"
    assert found.data.tags["mlflow.parentRunId"] == run.mlflow_run_id
    assert found.data.tags["xft.reused"] == "false"
    assert "xft.made_by_run_id" not in found.data.tags
    assert found.data.metrics == {"final/held_out_nll": 0.5, "final/stage_seconds": 2.5}
    assert {"seed": "0", "sft.epochs": "1.0", "sft.max_steps": "null"}.items() <= found.data.params.items()
    told_apart = {name: value for name, value in client().get_run(run.mlflow_run_id).data.params.items() if name in OF_STAGES}
    assert told_apart.items() <= found.data.params.items() and told_apart.items() <= found.data.tags.items()


def test_a_reused_child_names_its_maker_and_has_the_curves(
    run: PipelineRun, logger: logging.Logger, tmp_path: Path,
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.log(step, {"loss": 1 / step})
    child = StageRun(run, "sft", "sft_moe", logger)
    child.finish(tmp_path, manifest(provenance={"mlflow_run_id": "maker"}), reused=True)
    assert child.id is not None
    found = client().get_run(child.id)
    assert found.data.tags["xft.reused"] == "true"
    assert found.data.tags["xft.made_by_run_id"] == "maker"
    assert [step for step, _ in curve(child.id, "loss")] == [1, 2, 3]


def test_a_resumed_curve_has_neither_gaps_nor_doubles(
    run: PipelineRun, logger: logging.Logger, tmp_path: Path,
) -> None:
    first = StageRun(run, "sft", "sft_moe", logger)
    assert first.log_points(points(1, 2, 3, 4, 5))  # killed here; the checkpoint is at step 3
    first.end("FAILED")
    second = StageRun(run, "sft", "sft_moe", logger, again=True)
    assert second.id == first.id
    assert second.log_points(points(1, 2, 3))
    assert second.log_points(points(4, 5, 6))
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        log.log(step, {"loss": 1 / step})
    second.finish(tmp_path, manifest(), reused=False)
    assert [step for step, _ in curve(str(second.id), "loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_point_that_came_late_is_delivered_after_those_that_follow_it(
    run: PipelineRun, logger: logging.Logger, tmp_path: Path,
) -> None:
    first = StageRun(run, "sft", "sft_moe", logger)
    assert first.log_points(points(1, 2, 4, 5))
    second = StageRun(run, "sft", "sft_moe", logger, again=True)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 7):
        log.log(step, {"loss": 1 / step})
    second.finish(tmp_path, manifest(), reused=False)
    assert sorted(step for step, _ in curve(str(second.id), "loss")) == [1, 2, 3, 4, 5, 6]
    assert sorted(step for step, _ in curve(run.mlflow_run_id, "moe/loss")) == [1, 2, 3, 4, 5, 6]


def test_two_thousand_points_and_values_that_are_no_numbers(run: PipelineRun, logger: logging.Logger) -> None:
    child = StageRun(run, "sft", "sft_moe", logger)
    many = [{"step": step, "time": float(step), "metrics": {"loss": 1.0, "router/load": 0.5}} for step in range(1100)]
    many.append({"step": 1100, "time": 1100.0, "metrics": {"loss": float("nan"), "text": "x", "flag": True}})
    assert child.log_points(many)
    assert len(curve(str(child.id), "loss")) == 1101
    assert len(curve(str(child.id), "router/load")) == 1100
    assert set(client().get_run(str(child.id)).data.metrics) == {"loss", "router/load"}


def test_a_server_that_is_away_stops_nothing_and_gets_all_later(
    run: PipelineRun, logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        child = StageRun(run, "sft", "sft_moe", logger)
        assert not child.log_points(points(1, 2))
        assert not child.log_points(points(1, 2, 3))
        with pytest.raises(TrackingUnavailable, match="the same command delivers"):
            child.finish(tmp_path, manifest(), reused=False)
    assert sum("MLflow does not answer" in message for message in caplog.messages) == 1
    assert child.log_points(points(1, 2, 3))
    child.finish(tmp_path, manifest(), reused=False)
    assert [step for step, _ in curve(str(child.id), "loss")] == [1, 2, 3]


def test_a_server_that_cannot_be_reached_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingUnavailable, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        runs.open_run(Recipe(), "flow", "name")


def test_a_deleted_experiment_is_named(run: PipelineRun) -> None:
    client().delete_experiment(run.experiment_id)
    with pytest.raises(Exception, match="was deleted"):
        runs.open_run(run.recipe, "another", "name")


def test_abandoned_runs_are_closed_with_their_stages(run: PipelineRun, logger: logging.Logger, tmp_path: Path) -> None:
    done, open_child = StageRun(run, "upcycle", "upcycle", logger), StageRun(run, "sft", "sft_moe", logger)
    done.finish(tmp_path, manifest(), reused=False)
    runs.close_runs(run.flow_run_id, "KILLED")
    runs.close_runs("a flow run that is not known here", "KILLED")
    statuses = [client().get_run(str(item)).info.status for item in (run.mlflow_run_id, open_child.id, done.id)]
    assert statuses == ["KILLED", "KILLED", "FINISHED"]


def test_files_are_links_in_the_local_store(run: PipelineRun, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "plots" / "loss.png").write_bytes(b"y")
    log_directory(run.mlflow_run_id, tmp_path, "merged_model")
    log_directory(run.mlflow_run_id, tmp_path, "merged_model")  # a retry
    listed = client().list_artifacts(run.mlflow_run_id, "merged_model")
    assert {item.path for item in listed} == {"merged_model/model.safetensors", "merged_model/plots"}
    copy = settings().mlflow_artifacts / run.mlflow_run_id / "artifacts" / "merged_model" / "model.safetensors"
    assert copy.read_bytes() == b"x" * 1000
    if copy.stat().st_dev == (tmp_path / "model.safetensors").stat().st_dev:
        assert copy.samefile(tmp_path / "model.safetensors")


def test_a_large_model_is_not_copied_to_a_store_elsewhere(
    run: PipelineRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("tasks.tracking.files._local_root", lambda run_id: None)
    monkeypatch.setenv("XFT_MLFLOW_COPY_LIMIT_MB", "0")
    log_directory(run.mlflow_run_id, tmp_path, "merged_model")
    assert [item.path for item in client().list_artifacts(run.mlflow_run_id, "merged_model")] == [
        "merged_model/config.json"]
    assert client().get_run(run.mlflow_run_id).data.tags["xft.merged_model.path"] == str(tmp_path)


def test_headline_names() -> None:
    assert headline({"merged_plus_pass_at_1": 0.5, "moe_held_out_nll": 1.0, "base_base_pass_at_1": 0.25, "warnings": 2}) == {
        "merged/plus_pass_at_1": 0.5, "moe/held_out_nll": 1.0, "base/pass_at_1": 0.25, "warnings": 2}
    assert of_variant({"merged/held_out_nll": 1.0, "base/held_out_nll": 2.0}) == {"merged/held_out_nll": 1.0}


def test_many_cached_children_are_quick(run: PipelineRun, logger: logging.Logger, tmp_path: Path) -> None:
    started = time.monotonic()
    for number in range(15):
        StageRun(run, "evaluate", f"evaluate_{number}", logger).finish(tmp_path, manifest(), reused=True)
    assert time.monotonic() - started < 8
