"""The saved view of a comparison in MLflow: its columns and charts. That MLflow shows it was looked at in a browser."""

import json

from tasks.tracking.charts import view


def test_it_shows_the_variants_their_fields_and_the_merged_model() -> None:
    content = json.loads(view(
        "abc", {"upcycle.num_experts": True, "upcycle.normalization": False, "seed": True},
        ["warnings", "merged/held_out_nll", "merged/plus_pass_at_1", "moe/held_out_nll"]))
    assert content["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"
    assert content["selectedColumns"] == [
        "params.`upcycle.num_experts`", "params.`upcycle.normalization`", "params.`seed`",
        "metrics.`merged/plus_pass_at_1`", "metrics.`merged/held_out_nll`", "metrics.`moe/held_out_nll`"]
    charts = content["compareRunCharts"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert {chart["metricSectionId"] for chart in charts} == {content["compareRunSections"][0]["uuid"]}
    parallel, *others = charts
    assert parallel["type"] == "PARALLEL"
    assert parallel["selectedParams"] == ["upcycle.num_experts", "upcycle.normalization", "seed"]
    assert parallel["selectedMetrics"] == ["merged/plus_pass_at_1", "merged/held_out_nll"]
    assert [chart["metricKey"] for chart in others if chart["type"] == "BAR"] == [
        "merged/plus_pass_at_1", "merged/held_out_nll", "moe/held_out_nll"]
    assert [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in others if chart["type"] == "SCATTER"] == [
        (field, metric) for field in ("upcycle.num_experts", "seed")
        for metric in ("merged/plus_pass_at_1", "merged/held_out_nll")]


def test_without_numbers_there_is_still_a_view() -> None:
    content = json.loads(view("abc", {"seed": True}, []))
    assert content["orderByKey"] == "attributes.start_time"
    assert [chart["type"] for chart in content["compareRunCharts"]] == ["PARALLEL"]
