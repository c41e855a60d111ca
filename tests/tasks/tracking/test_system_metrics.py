"""The machine's load in a real MLflow, and that measuring it delays nothing."""

import time

import pytest

from tasks.references import PipelineRun
from tasks.tracking.client import client
from tasks.tracking.system_metrics import sampled


def test_a_run_has_the_load_of_its_machine(run: PipelineRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with sampled(run.mlflow_run_id):
        time.sleep(1)
    found = client().get_run(run.mlflow_run_id).data.metrics
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert found["system/system_memory_usage_megabytes"] > 0


def test_a_server_that_is_away_fails_nothing(run: PipelineRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started = time.monotonic()
    with sampled(run.mlflow_run_id):
        pass
    assert time.monotonic() - started < 30
