"""Layouts for MLflow's pages, so that users need not arrange them: saved views of a comparison, and initial layouts of tables.

Views are stored like those of MLflow's own "save view", in tags of the experiment, and are listed under *Views*. One shows all
variants. One for each varying field colours the variants by its values: during training, their curves show the mean over the
variants of each value. A version of MLflow that does not support the format says so and shows the plain table.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xft_core.recipe.steps import MERGED_MODEL, MOE_MODEL, SFT_MODEL
from xft_core.store.results.report import HELD_OUT_NLL, PASSED_PLUS

VIEW_TAG = "mlflow.sharedViewState."
LEAD, OF_SFT, OF_MOE = (
    (f"{model}/{PASSED_PLUS}", f"{model}/{HELD_OUT_NLL}") for model in (MERGED_MODEL, SFT_MODEL, MOE_MODEL))
COLUMNS = (*LEAD, *OF_SFT, *OF_MOE)
SHOWN = (*COLUMNS, f"{MERGED_MODEL}/pass_at_1", f"{MERGED_MODEL}/over_{SFT_MODEL}_{PASSED_PLUS}")
RUN_NAME, RUN_NAME_TAG = "attributes.`Run Name`", "tags.`mlflow.runName`"  # as a column, and as a sort key
CURVES = ("moe/loss", "sft/loss", "mix/loss", "moe/held_out_nll_while_training", "mix/held_out_nll_while_training",
          "moe/router_entropy", "moe/expert_load_max", "moe/expert_load_min", "moe/balance_loss", "moe/mean_shared_weight")
ACTIVE = f"{MOE_MODEL}/active_parameters"
SEED = "seed"
MOST_PARALLEL_AXES = 6
TRAINING, NUMBERS, AGAINST = "xft-training", "xft-numbers", "xft-against"
SECTIONS = {TRAINING: "While it trains", NUMBERS: "Results", AGAINST: "Fields and results"}


@dataclass(frozen=True)
class View:
    """A saved view: the end of its tag's name, the name that users see, and its state, as MLflow's pages store it."""

    key: str
    name: str
    state: dict[str, Any]

    def content(self, saved_at: float) -> str:
        """Return the tag's value. ``saved_at``: seconds since 1970."""
        when = int(saved_at * 1000)
        return json.dumps({"name": self.name, "createdAt": when, "updatedAt": when, "state": json.dumps(self.state)})


def view_key(parent_run_id: str) -> str:
    """Return the key of the view of all variants of a comparison."""
    return f"comparison-{parent_run_id[:8]}"


def views(name: str, parent_run_id: str, fields: dict[str, bool], metrics: Sequence[str] | None = None) -> list[View]:
    """Return the views of the comparison ``name``, with the view of all variants last: MLflow lists the newest first.
    ``fields``: the varying ones, and whether each is numeric; ``metrics``: names of the variants' metrics, None before they
    have any."""
    whole = _state(fields, metrics) | {"searchFilter": f"tags.`mlflow.parentRunId` = '{parent_run_id}'"}
    if metrics is None:
        # Not sorted by start time: the pages would fold the variants below the comparison's run, and draw none of their curves.
        whole |= {"orderByKey": RUN_NAME_TAG, "orderByAsc": True}
    key = view_key(parent_run_id)
    groups = {f"by {field}": [field] for field in fields if field != SEED}
    if len(groups) > 1:
        groups["by " + " × ".join(field for field in fields if field != SEED)] = [field for field in fields if field != SEED]
    found = [
        View(f"{key}-{number}", f"{name} {title}", whole | _grouped(grouping))
        for number, (title, grouping) in enumerate(groups.items(), 1)]
    return [*reversed(found), View(key, name, whole)]


def first_view(fields: dict[str, bool], metrics: Sequence[str] | None = None, expanded: str | None = None) -> str:
    """Return the initial layout of an experiment's table in a browser on its first visit (a tag of the experiment, see
    ``servers/mlflow_server.py``). ``expanded``: the comparison whose variants are visible at once."""
    return json.dumps(_state(fields, metrics) | ({"runsExpanded": {expanded: True}} if expanded else {}))


def _state(fields: dict[str, bool], metrics: Sequence[str] | None) -> dict[str, Any]:
    def has(name: str) -> bool:
        return metrics is None or name in metrics

    known, lead = [name for name in SHOWN if has(name)], [name for name in LEAD if has(name)]
    numeric = [field for field, is_numeric in fields.items() if is_numeric]
    charts = [_line(name) for name in CURVES if has(name)]
    charts += [_chart("BAR", name, NUMBERS, metricKey=name) for name in known]
    charts.append(_chart(
        "PARALLEL", "Varying fields and the merged model", AGAINST, selectedParams=list(fields)[:MOST_PARALLEL_AXES],
        selectedMetrics=lead, showAllRuns=True))
    if has(ACTIVE) and has(OF_MOE[0]):
        charts.append(_scatter("pass@1 against active parameters", (ACTIVE, "METRIC"), OF_MOE[0]))
    charts += [_scatter(f"{name} against {field}", (field, "PARAM"), name) for field in numeric for name in lead]
    if len(numeric) > 1:
        x, y = (field for field in [*(field for field in numeric if field != SEED), SEED][:2])
        charts += [_chart("CONTOUR", f"{name} by {x} and {y}", AGAINST, xaxis=_axis(x, "PARAM"), yaxis=_axis(y, "PARAM"),
                          zaxis=_axis(name, "METRIC")) for name in lead[-1:]]
    # The deciding metric comes first, because a narrow window shows only the first columns.
    numbers = [f"metrics.`{name}`" for name in known if name in COLUMNS]
    columns = [*numbers[:1], *(f"params.`{name}`" for name in fields), *numbers[1:]]
    return {
        "orderByKey": f"metrics.`{lead[0]}`" if lead and metrics is not None else "attributes.start_time", "orderByAsc": False,
        "selectedColumns": columns, "columnOrder": [RUN_NAME, *columns],
        "columnWidths": {RUN_NAME: 300} | dict.fromkeys(columns, 150),
        "runsHiddenMode": "SHOW_ALL", "hideEmptyCharts": True,
        "compareRunCharts": [chart | {"uuid": f"xft-{number}"} for number, chart in enumerate(charts)],
        "compareRunSections": [{"uuid": uuid, "name": name, "display": True, "isReordered": True}
                               for uuid, name in SECTIONS.items()],
        "isAccordionReordered": True}


def _grouped(fields: list[str]) -> dict[str, Any]:
    keys = [{"mode": "param", "groupByData": field} for field in fields]
    return {"groupBy": {"aggregateFunction": "average", "groupByKeys": keys}, "useGroupedValuesInCharts": True}


def _line(name: str) -> dict[str, Any]:
    return _chart(
        "LINE", name, TRAINING, metricKey=name, selectedMetricKeys=[name], xAxisKey="step", xAxisScaleType="linear",
        scaleType="linear", lineSmoothness=0, range={}, yAxisKey="metric", yAxisExpressions=[], ignoreOutliers=False,
        selectedXAxisMetricKey="", useGlobalXaxisKey=True, useGlobalLineSmoothing=True)


def _scatter(title: str, x: tuple[str, str], y: str) -> dict[str, Any]:
    return _chart("SCATTER", title, AGAINST, xaxis=_axis(*x), yaxis=_axis(y, "METRIC"))


def _axis(key: str, kind: str) -> dict[str, str]:
    return {"key": key, "type": kind}


def _chart(kind: str, title: str, section: str, **options: Any) -> dict[str, Any]:
    return {"type": kind, "deleted": False, "isGenerated": False, "runsCountToCompare": 100, "metricSectionId": section,
            "displayName": title, **options}
