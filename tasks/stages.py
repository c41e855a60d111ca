"""The steps of a run as Prefect tasks: one task for all of them, named after the stage."""

from collections.abc import Iterable
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from tasks.execution import base_model as base_models
from tasks.execution.carry_out import carry_out
from tasks.references import ArtifactRef, PipelineRun, base_model
from tasks.retry import RETRIED, STAGE_TASK
from tasks.stopping import stop_event
from xft_core.recipe.steps import Step


def submit(run: PipelineRun, steps: Iterable[Step], base: str) -> dict[str, PrefectFuture[Any]]:
    """Start the steps, each as soon as the steps it needs are done. Returns their futures by role."""
    futures: dict[str, PrefectFuture[Any]] = {}
    for step in steps:
        needed: Any = {role: futures[role] for role in step.needs}  # Prefect waits for them and passes their results
        futures[step.role] = stage.with_options(name=step.stage.replace("_", "-")).submit(run, step, needed, base)
    return futures


@task(name="stage", **STAGE_TASK)
def stage(run: PipelineRun, step: Step, needed: dict[str, ArtifactRef], base: str) -> ArtifactRef | State[Any]:
    """Run one step. ``needed``: the artifacts of the steps before it, by role; ``base``: the base model."""
    return carry_out(run, step, needed, base)


def local_base_model(run: PipelineRun) -> str:
    """Return the base model's name for stages. For a model at an S3 address or in MLflow, this is the local directory that it
    is fetched to.

    Raises XftError if it cannot be fetched.
    """
    name = base_model(run.recipe)
    return fetch_model(run, name) if base_models.is_elsewhere(name) else name


@task(
    name="fetch-model", task_run_name="fetch-model", **RETRIED)
def fetch_model(run: PipelineRun, address: str) -> str:
    """Fetch the model at an S3 address or in MLflow to a local directory. No transfer if it is here and unchanged there."""
    return str(base_models.fetch(address, stop_event(run.flow_run_id), get_run_logger()))
