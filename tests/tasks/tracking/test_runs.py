"""Real MLflow on real SQLite: parents, children, curves, statuses, files."""

import logging
import time
from pathlib import Path

import pytest

from tasks.publishing.headline import headline
from tasks.references import PipelineRun
from tasks.settings import settings
from tasks.tracking import runs
from tasks.tracking.client import TrackingUnavailable, client
from tasks.tracking.files import log_directory
from tasks.tracking.stage_run import StageRun
from xft_core.recipe.load import flatten
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


def test_the_parent_has_every_recipe_field(run: PipelineRun) -> None:
    parameters = client().get_run(run.mlflow_run_id).data.params
    assert set(parameters) == set(flatten(run.recipe))
    assert parameters["merge.shared_expert_weight"] == "0.75"
    assert parameters["upcycle.normalization"] == "xft"
    assert parameters["sft.max_steps"] == "null"


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
    assert found.data.params == {"seed": "0", "sft.epochs": "1.0", "sft.max_steps": "null"}


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


def test_the_data_set_is_an_input(run: PipelineRun) -> None:
    runs.log_data_set(run.mlflow_run_id, "rows.jsonl", "a" * 64, '{"uri": "rows.jsonl"}', '{"rows": 3}')
    entry = client().get_run(run.mlflow_run_id).inputs.dataset_inputs[0]
    assert (entry.dataset.name, entry.dataset.digest) == ("rows.jsonl", "a" * 36)


def test_headline_names() -> None:
    assert headline({"merged_plus_pass_at_1": 0.5, "moe_held_out_nll": 1.0, "warnings": 2}) == {
        "merged/plus_pass_at_1": 0.5, "moe/held_out_nll": 1.0, "warnings": 2}


def test_many_cached_children_are_quick(run: PipelineRun, logger: logging.Logger, tmp_path: Path) -> None:
    started = time.monotonic()
    for number in range(15):
        StageRun(run, "evaluate", f"evaluate_{number}", logger).finish(tmp_path, manifest(), reused=True)
    assert time.monotonic() - started < 8
