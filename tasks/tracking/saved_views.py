"""Saves the views of charts.py in MLflow: of a comparison when it begins, so that its curves are watched in them, and when it
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
    """The views of a comparison, and what its experiment's table begins with. ``metrics``: names of those that its variants
    have; None before they have any."""
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
    """What the table of an experiment of runs begins with, unless that is known."""
    if FIRST_VIEW not in client().get_experiment(experiment_id).tags:
        client().set_experiment_tag(experiment_id, FIRST_VIEW, charts.first_view(fields))
