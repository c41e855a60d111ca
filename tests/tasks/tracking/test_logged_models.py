"""Models and data sets in a real MLflow: one logged model for all runs that have it, ranked by its metrics on a data set."""

import json
from dataclasses import replace

from tasks.references import PipelineRun
from tasks.tracking import runs
from tasks.tracking.client import client
from tasks.tracking.logged_models import DataSet, Measured, MeasuredModel, log_data_sets, log_models

TRAINING = DataSet("rows.jsonl", "a" * 64, "training", "rows.jsonl", {"prompt": "string", "response": "string"}, {"rows": 3})
BENCHMARK = DataSet("demo benchmark", "b" * 64, "evaluation", "demo:benchmark.jsonl", {"task_id": "string"}, {"problems": 80})


def model(kind: str, digest: str, solved: float, run_id: str, made_here: bool = True) -> MeasuredModel:
    return MeasuredModel(
        name=f"tiny-{kind}", kind=kind, digest=digest, made_here=made_here, parameters={"seed": "0"}, tags={},
        numbers=[Measured(run_id, None, {"active_parameters": 5.0}), Measured(run_id, BENCHMARK, {"plus_pass_at_1": solved})])


def test_a_data_set_is_an_input_with_a_schema(run: PipelineRun) -> None:
    log_data_sets(run.mlflow_run_id, [TRAINING, BENCHMARK])
    found = {entry.dataset.name: entry for entry in client().get_run(run.mlflow_run_id).inputs.dataset_inputs}
    training = found["rows.jsonl"]
    assert training.dataset.digest == "a" * 36
    assert [column["name"] for column in json.loads(training.dataset.schema)["mlflow_colspec"]] == ["prompt", "response"]
    assert training.tags[0].value == "training" and found["demo benchmark"].tags[0].value == "evaluation"


def test_models_of_all_runs_are_ranked_and_shared_ones_are_one(run: PipelineRun) -> None:
    other = runs.open_run(run.recipe, "another", "tiny")
    stage = client().create_run(run.run_experiment_id).info.run_id
    first = log_models(run, [model("base", "d0", 0.1, stage, made_here=False), model("merged", "d1", 0.5, stage)])
    second = log_models(other, [model("base", "d0", 0.1, stage, made_here=False), model("merged", "d2", 0.7, stage)])
    assert first["base"] == second["base"] and first["merged"] != second["merged"]
    ranked = client().search_logged_models(
        [run.run_experiment_id], order_by=[{"field_name": "metrics.plus_pass_at_1", "ascending": False}])
    assert [item.model_id for item in ranked] == [second["merged"], first["merged"], first["base"]]
    best = next(metric for metric in ranked[0].metrics or [] if metric.key == "plus_pass_at_1")
    assert (best.value, best.dataset_name) == (0.7, "demo benchmark")
    shown = client().get_run(run.mlflow_run_id)
    assert [item.model_id for item in shown.outputs.model_outputs] == [first["merged"]]
    assert [item.model_id for item in shown.inputs.model_inputs] == [first["base"]]
    assert "plus_pass_at_1" not in shown.data.metrics  # in the run it would be a single number for four models


def test_a_delivery_that_is_repeated_notes_nothing_twice(run: PipelineRun) -> None:
    """A retried publish task, and a run that continues after its approval, deliver to a run that already has everything."""
    stage = client().create_run(run.run_experiment_id).info.run_id
    # A rival may turn out identical to another model.
    base, merged = model("base", "d0", 0.1, stage, made_here=False), model("merged", "d1", 0.5, stage)
    models = [base, merged, replace(merged, kind="sft")]
    first = log_models(run, models)
    assert log_models(run, models) == first
    # The second time, this run finds its models in the store; they remain its outputs.
    assert log_models(run, [replace(item, made_here=False) for item in models]) == first
    shown = client().get_run(run.mlflow_run_id)
    assert [item.model_id for item in shown.outputs.model_outputs] == [first["merged"]]
    assert [item.model_id for item in shown.inputs.model_inputs] == [first["base"]]
