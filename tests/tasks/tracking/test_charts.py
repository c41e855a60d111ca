"""The saved views of a comparison in MLflow: columns, curves, charts. tests/ui/test_comparison.py checks MLflow's pages."""

import json
from typing import Any

from tasks.tracking.charts import CURVES, first_view, view_key, views

FIELDS = {"upcycle.num_experts": True, "upcycle.normalization": False, "seed": True}
METRICS = ["warnings", "merged/held_out_nll", "merged/plus_pass_at_1", "moe/held_out_nll", "moe/loss"]


def state(**changes: Any) -> dict[str, Any]:
    given = {"fields": FIELDS, "metrics": METRICS} | changes
    return views("demo by experts", "abcdefgh-ijk", given["fields"], given["metrics"])[-1].state


def test_the_view_of_all_variants_shows_their_fields_and_the_merged_model() -> None:
    content = state()
    assert content["searchFilter"] == "tags.`mlflow.parentRunId` = 'abcdefgh-ijk'"
    assert content["selectedColumns"] == [
        "metrics.`merged/plus_pass_at_1`", "params.`upcycle.num_experts`", "params.`upcycle.normalization`", "params.`seed`",
        "metrics.`merged/held_out_nll`", "metrics.`moe/held_out_nll`"]
    charts = content["compareRunCharts"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert {chart["metricSectionId"] for chart in charts} <= {section["uuid"] for section in content["compareRunSections"]}
    assert [chart["metricKey"] for chart in charts if chart["type"] == "LINE"] == ["moe/loss"]
    parallel = next(chart for chart in charts if chart["type"] == "PARALLEL")
    assert parallel["selectedParams"] == list(FIELDS)
    assert parallel["selectedMetrics"] == ["merged/plus_pass_at_1", "merged/held_out_nll"]
    assert [chart["metricKey"] for chart in charts if chart["type"] == "BAR"] == [
        "merged/plus_pass_at_1", "merged/held_out_nll", "moe/held_out_nll"]
    assert [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in charts if chart["type"] == "SCATTER"] == [
        (field, metric) for field in ("upcycle.num_experts", "seed")
        for metric in ("merged/plus_pass_at_1", "merged/held_out_nll")]
    contour = next(chart for chart in charts if chart["type"] == "CONTOUR")
    assert (contour["xaxis"]["key"], contour["yaxis"]["key"], contour["zaxis"]["key"]) == (
        "upcycle.num_experts", "seed", "merged/held_out_nll")


def test_variants_are_coloured_by_every_field_but_the_seed_and_by_all_of_them() -> None:
    made = views("demo by experts", "abcdefgh-ijk", FIELDS, METRICS)
    assert made[-1].key == view_key("abcdefgh-ijk") and made[-1].name == "demo by experts"
    grouped = {view.name: [key["groupByData"] for key in view.state["groupBy"]["groupByKeys"]] for view in made[:-1]}
    assert grouped == {
        "demo by experts by upcycle.num_experts": ["upcycle.num_experts"],
        "demo by experts by upcycle.normalization": ["upcycle.normalization"],
        "demo by experts by upcycle.num_experts × upcycle.normalization": ["upcycle.num_experts", "upcycle.normalization"]}
    assert len({view.key for view in made}) == 4


def test_a_view_is_kept_as_mlflows_pages_keep_one() -> None:
    view = views("demo", "abc", {"seed": True}, [])[-1]
    content = json.loads(view.content(saved_at=2.5))
    assert (content["name"], content["createdAt"], content["updatedAt"]) == ("demo", 2500, 2500)
    assert json.loads(content["state"]) == view.state


def test_before_there_are_numbers_all_curves_have_their_place() -> None:
    content = state(metrics=None)
    assert content["orderByKey"] == "tags.`mlflow.runName`"  # by start time they would be folded below the comparison's
    assert content["orderByAsc"] and content["hideEmptyCharts"]
    assert [chart["metricKey"] for chart in content["compareRunCharts"] if chart["type"] == "LINE"] == list(CURVES)
    active = [chart for chart in content["compareRunCharts"] if chart["displayName"] == "pass@1 against active parameters"]
    assert [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in active] == [
        ("moe/active_parameters", "moe/plus_pass_at_1")]


def test_an_experiment_begins_with_its_columns_and_the_variants_in_sight() -> None:
    content = json.loads(first_view(FIELDS, METRICS, expanded="abc"))
    assert content["selectedColumns"] == state()["selectedColumns"]
    assert content["runsExpanded"] == {"abc": True} and "searchFilter" not in content
