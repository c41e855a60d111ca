"""Announce the results of a run as an event."""

from math import isfinite

from tasks import events
from tasks.prefect_log import Logger
from tasks.publishing.pipeline import PipelineResult
from xft_core.recipe.sections import Recipe


def announce_completed(recipe: Recipe, result: PipelineResult, logger: Logger) -> None:
    """Emit xft.run.completed, with the metrics used to compare runs."""
    told = result.model_dump(mode="json", exclude={"proposal", "metrics"})
    numbers = {name: value for name, value in result.metrics.items() if isfinite(value)}
    events.emit(
        events.RUN_COMPLETED, "recipe", recipe.name, {"experiment": recipe.experiment, "metrics": numbers, **told}, logger)
