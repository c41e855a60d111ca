"""What a run has come to, told to whoever listens."""

from math import isfinite

from tasks import events
from tasks.prefect_log import Logger
from tasks.publishing.pipeline import PipelineResult
from xft_core.recipe.sections import Recipe


def announce_completed(recipe: Recipe, result: PipelineResult, logger: Logger) -> None:
    """Emit xft.run.completed, with the numbers that runs are compared by."""
    told = result.model_dump(mode="json", exclude={"proposal", "metrics"})
    numbers = {name: value for name, value in result.metrics.items() if isfinite(value)}
    events.emit(
        events.RUN_COMPLETED, "recipe", recipe.name, {"experiment": recipe.experiment, "metrics": numbers, **told}, logger)
