"""The page that a run shows first: links, plan and recipe."""

import logging

import pytest

from tasks.execution.start_page import show_start, start_page
from tasks.references import PipelineRun


def test_it_says_where_what_and_how_long(run: PipelineRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_ONE_ADDRESS", "1")
    monkeypatch.setenv("XFT_STORE", "s3://bucket/some/prefix")
    text = start_page(run, "pipeline")
    place = f"/mlflow/#/experiments/{run.run_experiment_id}"
    assert f"({place}/runs/{run.mlflow_run_id}?workflowType=machine_learning)" in text
    assert f"({place}/models?workflowType=machine_learning)" in text
    assert "`s3://bucket/some/prefix`" in text
    assert "| sft moe" in text and "took here before" in text
    assert "num_experts: 8" in text and "name: tiny" in text
    assert "viewStateShareKey" not in text and "viewStateShareKey" in start_page(run, "comparison", has_variants=True)


def test_an_evaluation_shows_what_plays_a_role_in_it(run: PipelineRun) -> None:
    text = start_page(run, "evaluate", frozenset({"model", "generate"}))
    assert "max_new_tokens" in text and "num_experts" not in text and "## Plan" not in text


def test_it_fails_no_run(run: PipelineRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no plan")

    monkeypatch.setattr("tasks.execution.start_page.make_plan", broken)
    show_start(run, "pipeline", None, False, logging.getLogger("tests.start"))
    assert sum("cannot be created; the run continues. no plan" in message for message in caplog.messages) == 1
