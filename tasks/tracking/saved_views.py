"""Save the views of charts.py in MLflow: when a comparison begins, so that its curves can be watched in them, and when it
ends."""

import time
from collections.abc import Sequence
from typing import Any

from tasks.references import PipelineRun
from tasks.settings import FIRST_VIEW
from tasks.tracking import charts
from tasks.tracking.client import client

Axes = Sequence[tuple[Sequence[str], Sequence[Sequence[Any]]]]  # fields that vary together, and their values in order


def save(run: PipelineRun, axes: Axes, metrics: Sequence[str] | None = None) -> None:
    """Save the views of a comparison, and the initial layout of its experiment's table. ``metrics``: names of the variants'
    metrics; None before they have any."""
    fields = {
        field: all(isinstance(step[place], int | float) and not isinstance(step[place], bool) for step in steps)
        for names, steps in axes for place, field in enumerate(names) if len(steps) > 1}
    name = str(client().get_run(run.mlflow_run_id).info.run_name)
    now = time.time()
    for place, view in enumerate(charts.views(name, run.mlflow_run_id, fields, metrics)):
        client().set_experiment_tag(run.run_experiment_id, f"{charts.VIEW_TAG}{view.key}", view.content(now + place))
    client().set_experiment_tag(
        run.run_experiment_id, FIRST_VIEW, charts.first_view(fields, metrics, run.mlflow_run_id))


def begin_with(experiment_id: str, fields: dict[str, bool]) -> None:
    """Set the initial layout of the table of an experiment of runs, unless it is set."""
    if FIRST_VIEW not in client().get_experiment(experiment_id).tags:
        client().set_experiment_tag(experiment_id, FIRST_VIEW, charts.first_view(fields))
