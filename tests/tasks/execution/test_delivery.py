"""Delivery to a server that was unavailable: retried for a limited time, and never repeated once delivered."""

import logging
import threading
import time
from pathlib import Path

import pytest

from tasks.execution import delivery
from tasks.execution.delivery import deliver_rest, insist
from tasks.object_store.bucket import StoreRefused, StoreUnavailable
from tasks.references import ArtifactRef, PipelineRun
from tasks.stopping import RunStopped
from tasks.tracking.client import TrackingRefused, TrackingUnavailable, client, explained
from tasks.tracking.stage_run import StageRun
from xft_core.store.artifacts import publish
from xft_core.store.curves import MetricsLog
from xft_core.store.workspace import Workspace

NEVER = threading.Event()


class Server:
    """A server that does not answer the first ``times`` requests."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.asked = times, error, 0

    def ask(self) -> str:
        self.asked += 1
        if self.asked <= self.times:
            raise self.error
        return "answer"


def test_it_is_asked_until_it_answers_and_said_once(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 0.01)
    server = Server(4, StoreUnavailable("s3://bucket does not answer."))
    assert insist(server.ask, NEVER, logger) == "answer"
    assert server.asked == 5
    assert caplog.messages == ["s3://bucket does not answer. Retrying for up to 600 s."]


def test_patience_ends(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_DELIVERY_SECONDS", "1")
    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 0.2)
    server, started = Server(1000, TrackingUnavailable("away")), time.monotonic()
    with pytest.raises(TrackingUnavailable) as caught:
        insist(server.ask, NEVER, logger)
    assert not caught.value.may_pass  # Prefect does not retry
    assert 2 <= server.asked <= 4 and time.monotonic() - started < 5


def test_mlflow_that_refuses_is_not_asked_for_minutes(
    run: PipelineRun, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLflow refuses an output that the run already has, so waiting cannot help."""
    from mlflow.entities import LoggedModelOutput

    monkeypatch.setattr(delivery, "FIRST_PAUSE_SECONDS", 0.01)
    model = client().create_logged_model(run.run_experiment_id, name="tiny")
    asked = []

    def note() -> None:
        asked.append(model.model_id)
        with explained():
            client().log_outputs(run.mlflow_run_id, [LoggedModelOutput(model.model_id, 0)])

    insist(note, NEVER, logger)
    with pytest.raises(TrackingRefused, match="UNIQUE constraint") as caught:
        insist(note, NEVER, logger)
    assert len(asked) == 1 + delivery.REFUSALS and not caught.value.may_pass


def test_a_refusal_is_not_argued_with(logger: logging.Logger) -> None:
    server = Server(1, StoreRefused("no such bucket"))
    with pytest.raises(StoreRefused):
        insist(server.ask, NEVER, logger)
    assert server.asked == 1


def test_waiting_ends_when_the_run_is_stopped(logger: logging.Logger) -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    with pytest.raises(RunStopped):
        insist(Server(1000, StoreUnavailable("away")).ask, stop, logger)
    assert time.monotonic() - started < 0.9


def test_what_mlflow_was_away_for_is_recorded_at_the_end(
    run: PipelineRun, logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "sft" / "key"
    workspace = Workspace(output)
    workspace.root.mkdir(parents=True)
    workspace.prepare()
    log = MetricsLog(workspace.metrics_path)
    for step in (1, 2, 3):
        log.log(step, {"loss": 1 / step})
    manifest = publish(workspace, output, stage="sft", stage_version=1, key="k" * 64, parents={}, config={},
                       metrics={"held_out_nll": 0.5}, provenance={}, seconds=1)
    child = StageRun(run, "sft", "sft_moe", logger)
    assert child.log_points([{"step": 1, "time": 1.0, "metrics": {"loss": 1.0}}])
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingUnavailable, match="the same command delivers"):
            child.finish(output, manifest, reused=False)
    item = ArtifactRef(stage="sft", role="sft_moe", key="k" * 64, digest=manifest.digest, path=output, metrics={},
                       reused=False, mlflow_run_id=child.id, recorded=False)
    deliver_rest(run, [item, item.model_copy(update={"recorded": True, "role": "other"})], NEVER, logger)
    found = client().search_runs([run.experiment_id], "tags.`xft.kind` = 'stage'")
    assert [(item.info.run_id, item.info.status) for item in found] == [(child.id, "FINISHED")]
    assert [point.step for point in client().get_metric_history(str(child.id), "loss")] == [1, 2, 3]
    assert found[0].data.metrics["final/held_out_nll"] == 0.5
