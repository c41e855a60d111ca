"""Parameters whose names contain a user's text, in real MLflow on real SQLite."""

import logging
from pathlib import Path

import pytest

from tasks.references import PipelineRun
from tasks.tracking.client import client, log_batch
from tasks.tracking.stage_run import StageRun
from tests.tasks.tracking.test_runs import manifest

NAMES = (
    "failures.best-step learning_rate=0.001 seed=0", "failures.best-step learning_rate_0.001 seed_0", "arms.xft+soup.about",
    "arms.xft_soup.about", "sources.//data//rows.jsonl", "sources.../rows.jsonl", "arms.größer.about",
    f"arms.{'a' * 300}.about", f"arms.{'a' * 301}.about", "tuning.merge.delta_scale")


def test_every_parameter_arrives_under_a_name_of_its_own(run: PipelineRun) -> None:
    log_batch(run.mlflow_run_id, params={name: number for number, name in enumerate(NAMES)})
    log_batch(run.mlflow_run_id, params={name: number for number, name in enumerate(NAMES)})  # a retry changes nothing
    found = client().get_run(run.mlflow_run_id).data.params
    assert {str(number) for number in range(len(NAMES))} <= set(found.values())
    assert found["arms.größer.about"] == "6" and found["tuning.merge.delta_scale"] == "9"  # accepted as they are
    assert found["failures.best-step learning_rate_0.001 seed_0"] == "1"


@pytest.mark.parametrize("name", NAMES[:7])
def test_a_stage_with_such_names_is_recorded(name: str, run: PipelineRun, logger: logging.Logger, tmp_path: Path) -> None:
    child = StageRun(run, "study", "study", logger)
    child.finish(tmp_path, manifest(stage="study", config={"failures": {name: "KeyError"}}), False)
    assert child.id is not None and "KeyError" in client().get_run(child.id).data.params.values()
