"""The base model as stages take it: fetched first where the recipe gives an S3 address."""

from prefect import get_run_logger, task
from prefect.tasks import exponential_backoff

from tasks.execution.carry_out import may_pass, stop_event
from tasks.object_store import models
from tasks.preflight import base_model
from tasks.references import PipelineRun


def local_base_model(run: PipelineRun) -> str:
    """The base model's name for stages; of one at an S3 address, the local directory that it is fetched to.

    Raises XftError when it cannot be had.
    """
    name = base_model(run.recipe)
    return fetch_model(run, name) if models.is_address(name) else name


@task(
    name="fetch-model", task_run_name="fetch-model", persist_result=False, retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2), retry_jitter_factor=0.5, retry_condition_fn=may_pass)
def fetch_model(run: PipelineRun, address: str) -> str:
    """The model at an S3 address as a local directory; no transfer if it is here and unchanged there."""
    return str(models.fetch(address, stop_event(run.flow_run_id), get_run_logger()))
