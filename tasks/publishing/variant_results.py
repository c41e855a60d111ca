"""Collect the results of a comparison's variants, wherever they ran: find them in MLflow, fetch reports to the local store."""

import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.object_store import artifacts
from tasks.prefect_log import reason
from tasks.references import PipelineRun
from tasks.settings import KEY_LENGTH, settings
from tasks.stopping import stop_event
from tasks.tracking.client import TrackingUnavailable, client
from xft_core.errors import ArtifactError
from xft_core.files.disk import locked
from xft_core.files.temporary import temporary_directory
from xft_core.store.artifacts import find


class VariantResult(BaseModel):
    """One finished variant: its run in MLflow, its report in the local store, and how many of its stages were reused."""

    model_config = ConfigDict(frozen=True)

    mlflow_run_id: str
    report: Path
    stages: int
    reused_stages: int


def collect(run: PipelineRun) -> dict[str, VariantResult]:
    """Return the finished variants of the comparison ``run`` by name. If a variant ran more than once, the newest run counts.

    Raises TrackingUnavailable if MLflow does not answer, ArtifactError if a report cannot be fetched.
    """
    try:
        parent = client().get_run(run.mlflow_run_id)
        children = client().search_runs(
            [parent.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.mlflow_run_id}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"])
    except Exception as error:
        raise TrackingUnavailable(
            f"MLflow at {settings().tracking_shown} cannot be read: {reason(error)}") from error
    found = {}
    for child in children:
        tags = child.data.tags
        report = _report(tags["xft.report.key"], child.info.run_id, stop_event(run.flow_run_id))
        found[tags["xft.variant"]] = VariantResult(
            mlflow_run_id=child.info.run_id, report=report, stages=int(tags["xft.stages"]),
            reused_stages=int(tags["xft.reused_stages"]))
    return found


def _report(key: str, run_id: str, stop: threading.Event) -> Path:
    """Return the report artifact of this key: from the local store, the object store, or the variant's run in MLflow."""
    output = settings().artifacts / "report" / key[:KEY_LENGTH]
    if find(output, key) or artifacts.fetch(output, key, stop):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output), temporary_directory("report", output=output) as directory:
        if not find(output, key):
            copy = Path(client().download_artifacts(run_id, "report", str(directory)))
            if not find(copy, key):
                raise ArtifactError(f"The report of MLflow run {run_id} is incomplete, both here and in MLflow.")
            copy.rename(output)
    return output
