"""A variant learns from its tags which comparison it belongs to. MLflow shows it there, with its stages next to it."""

import logging

import pytest

from tasks.tracking import runs
from tasks.tracking.client import client
from tasks.tracking.stage_run import StageRun
from tasks.variant_tags import VariantOf, variant_of
from xft_core.recipe.sections import Recipe

VARIANT = VariantOf(comparison="flow-1", name="experts=4 norm=none seed=1", group="experts=4 norm=none")


def test_tags_say_it_and_nothing_else_does() -> None:
    assert variant_of(["xft", *VARIANT.tags(), "nightly"]) == VARIANT
    assert variant_of(["xft", "variant:of my own"]) is None
    assert variant_of([]) is None


def test_a_variant_is_a_child_of_its_comparison(request: pytest.FixtureRequest, logger: logging.Logger) -> None:
    recipe = Recipe(name="tiny", experiment=request.node.name)
    comparison = runs.open_run(
        recipe, "flow-1", "tiny by experts", kind="comparison", without=frozenset({"upcycle.num_experts"}))
    variant = runs.open_run(recipe, "flow-2", VARIANT.name, variant=VARIANT)
    parent, child = client().get_run(comparison.mlflow_run_id), client().get_run(variant.mlflow_run_id)
    assert "upcycle.num_experts" not in parent.data.params
    assert set(child.data.params) == {"upcycle.num_experts"}  # the field that varies; MLflow's charts then start with it
    assert child.info.experiment_id == parent.info.experiment_id
    assert child.data.tags["mlflow.parentRunId"] == comparison.mlflow_run_id
    assert child.data.tags["xft.group"] == VARIANT.group
    stage = StageRun(variant, "sft", "sft_moe", logger)
    assert stage.id is not None and stage.log_points([{"step": 1, "time": 1.0, "metrics": {"loss": 2.0}}])
    shown = client().get_run(stage.id)
    assert shown.data.tags["xft.variant"] == VARIANT.name and shown.data.params["upcycle.num_experts"] == "8"
    assert shown.info.run_name == f"sft-moe {VARIANT.name}"
    beside = shown.info.experiment_id
    assert client().get_experiment(beside).name == f"{recipe.experiment}/stages"

    # The comparison's process was killed, but its variants may still be running elsewhere.
    runs.close_runs("flow-1", "KILLED")
    assert client().get_run(comparison.mlflow_run_id).info.status == "KILLED"
    assert client().get_run(variant.mlflow_run_id).info.status == "RUNNING"
    runs.close_runs("flow-2", "KILLED")
    assert [client().get_run(run).info.status for run in (variant.mlflow_run_id, stage.id)] == ["KILLED", "KILLED"]


def test_a_variant_whose_comparison_is_unknown_is_a_run_of_its_own(request: pytest.FixtureRequest) -> None:
    run = runs.open_run(Recipe(experiment=request.node.name), "flow-3", VARIANT.name, variant=VARIANT)
    assert "mlflow.parentRunId" not in client().get_run(run.mlflow_run_id).data.tags
