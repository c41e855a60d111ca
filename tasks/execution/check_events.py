"""Send the findings of the recipe's checks as events: a diverging loss at once, all others at the end of the stage."""

import contextvars
from collections.abc import Mapping
from pathlib import Path

from tasks import events
from tasks.prefect_log import Logger
from tasks.references import PipelineRun
from tasks.tracking.follower import Follower, Points
from xft_core.recipe.checks import Finding, TrainingWatch, stage_findings, training_findings
from xft_core.recipe.sections import ChecksConfig
from xft_core.recipe.steps import Step
from xft_core.store.results.base import HasMetrics
from xft_core.store.results.curve import CurvePoint

DIVERGING = "diverging_loss"


def watched(curve: Path, run: PipelineRun, role: str, logger: Logger) -> Follower:
    """Return a context that watches the growing ``curve`` of a stage and reports the first divergence at once."""
    watch = TrainingWatch()
    context = contextvars.copy_context()  # tells Prefect to which run this event belongs

    def look(points: Points) -> bool:
        known = watch.diverged_at_step is not None
        for point in map(CurvePoint.of, points):
            watch.add(point.step, point.values)
        if watch.diverged_at_step is not None and not known:
            found = [item for item in training_findings(watch.found(), ChecksConfig()) if item.check == DIVERGING]
            context.run(_emit, run, role, found, run.recipe.checks.diverging_loss == "stop", logger)
        return True

    return Follower(curve, look)


def tell(run: PipelineRun, step: Step, made: Mapping[str, HasMetrics], reused: bool, logger: Logger) -> None:
    """Report the findings in the artifact of ``step``. For a reused stage, report only findings that stop the run: the others
    were reported when it ran. A divergence that does not stop the run was reported when it happened."""
    stopping = stage_findings(step, run.recipe, made, only_stop=True)
    found = [] if reused else [item for item in stage_findings(step, run.recipe, made) if item not in stopping]
    _emit(run, step.role, stopping, True, logger)
    _emit(run, step.role, [item for item in found if item.check != DIVERGING], False, logger)


def _emit(run: PipelineRun, role: str, found: list[Finding], stops: bool, logger: Logger) -> None:
    for finding in found:
        payload = {"role": role, "said": str(finding), "stops": stops, "mlflow_run_id": run.mlflow_run_id}
        events.emit(
            events.CHECK_FAILED, "recipe", run.recipe.name, payload, logger, check=finding.check, stops=str(stops).lower())
