"""How MLflow's pages show one comparison without any work by hand: a saved view of its experiment.

The view holds only the comparison's variants, has the varying fields and the merged model's numbers as columns, and as
charts parallel coordinates, a bar for each number, and each numeric field against each number. It is stored as MLflow's
own "share" button stores one, in a tag of the experiment; a version that does not know the form says so and shows the
plain table.
"""

import json
from typing import Any

VIEW_TAG = "mlflow.sharedViewState."
LEAD = ("merged/plus_pass_at_1", "merged/held_out_nll")
SHOWN = (*LEAD, "merged/base_pass_at_1", "merged/over_sft_plus_pass_at_1", "sft/plus_pass_at_1", "sft/held_out_nll",
         "moe/plus_pass_at_1", "moe/held_out_nll")
MOST_PARALLEL_AXES = 6


def view_key(parent_run_id: str) -> str:
    """The name of a comparison's view."""
    return f"comparison-{parent_run_id[:8]}"


def view(parent_run_id: str, fields: dict[str, bool], metrics: list[str]) -> str:
    """The content of the view's tag. ``fields``: the varying ones, and whether each is numeric; ``metrics``: names of those
    that the variants have."""
    known = [name for name in SHOWN if name in metrics]
    lead = [name for name in LEAD if name in metrics]
    charts: list[dict[str, Any]] = [
        _chart(0, "PARALLEL", "Varying fields and the merged model", selectedParams=list(fields)[:MOST_PARALLEL_AXES],
               selectedMetrics=lead, showAllRuns=True)]
    charts += [_chart(len(charts) + index, "BAR", "", metricKey=name) for index, name in enumerate(known)]
    for field, is_numeric in fields.items():
        for name in lead if is_numeric else ():
            charts.append(_chart(
                len(charts), "SCATTER", "", xaxis={"key": field, "type": "PARAM"}, yaxis={"key": name, "type": "METRIC"}))
    return json.dumps({
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_run_id}'",
        "orderByKey": f"metrics.`{lead[0]}`" if lead else "attributes.start_time", "orderByAsc": False,
        "selectedColumns": [*(f"params.`{name}`" for name in fields), *(f"metrics.`{name}`" for name in known)],
        "runsHiddenMode": "SHOW_ALL", "compareRunCharts": charts,
        "compareRunSections": [{"uuid": SECTION, "name": "Comparison", "display": True, "isReordered": True}],
        "isAccordionReordered": True})


SECTION = "xft-comparison"


def _chart(number: int, kind: str, title: str, **options: Any) -> dict[str, Any]:
    return {"uuid": f"xft-{number}", "type": kind, "deleted": False, "isGenerated": False, "runsCountToCompare": 100,
            "metricSectionId": SECTION, "displayName": title, **options}
