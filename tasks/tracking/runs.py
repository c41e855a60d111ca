"""MLflow: one parent run for a pipeline run, one child for each of its stages. Only this module and mlflow_model.py import it.

Runs are named by their ids throughout: MLflow's "active run" belongs to a thread, and stages run in several.
"""

import time
from typing import TYPE_CHECKING

from tasks.prefect_log import reason
from tasks.references import PipelineRun
from tasks.settings import settings
from tasks.tracking.client import TrackingUnavailable, client, log_batch
from tasks.variant_tags import VariantOf
from xft_core.errors import XftError
from xft_core.recipe.load import flatten
from xft_core.recipe.sections import Recipe

if TYPE_CHECKING:
    pass


# Stages of a comparison's variants are kept out of its own experiment: the table there compares variants.
STAGES_EXPERIMENT = "/stages"
EXPERIMENTS = 1000  # that are searched for a run














def open_run(
    recipe: Recipe, flow_run_id: str, name: str, kind: str = "pipeline", sections: frozenset[str] | None = None,
    without: frozenset[str] = frozenset(), variant: VariantOf | None = None,
) -> PipelineRun:
    """The parent run of a pipeline run: new, or the one that an earlier attempt of the same flow run opened.

    ``kind``: the tag that tells it from runs of another flow. ``sections``: parts of the recipe that play a role in it;
    ``without``: fields that have no one value. A ``variant`` is a child of its comparison's run.

    Raises TrackingUnavailable when MLflow cannot be reached, XftError when the experiment was deleted in it.
    """
    try:
        experiment_id = stages_id = _experiment_id(recipe.experiment)
        if variant or kind == "comparison":
            stages_id = _experiment_id(recipe.experiment + STAGES_EXPERIMENT)
        run_id = _find_run(experiment_id, flow_run_id, kind)
        if run_id:
            client().update_run(run_id, status="RUNNING")
        else:
            tags = {"xft.kind": kind, "xft.recipe": recipe.name, "prefect.flow_run_id": flow_run_id}
            if variant:
                tags |= {"xft.variant": variant.name, "xft.group": variant.group}
                if parent := _find_run(experiment_id, variant.comparison, "comparison"):
                    tags["mlflow.parentRunId"] = parent
            run_id = str(client().create_run(experiment_id, run_name=name, tags=tags).info.run_id)
            log_batch(run_id, params={
                field: value for field, value in flatten(recipe).items()
                if field not in without and (sections is None or field.partition(".")[0] in sections)})
    except XftError:
        raise
    except Exception as error:
        raise TrackingUnavailable(f"MLflow at {settings().tracking_shown} cannot be used: {reason(error)}") from error
    return PipelineRun(recipe=recipe, flow_run_id=flow_run_id, experiment_id=stages_id, mlflow_run_id=run_id)


def end_run(run_id: str, status: str) -> None:
    """Set a run's final status: FINISHED, FAILED or KILLED."""
    client().set_terminated(run_id, status)


def experiment_of(run_id: str) -> str:
    """The experiment that a run belongs to."""
    return str(client().get_run(run_id).info.experiment_id)


def close_runs(flow_run_id: str, status: str) -> None:
    """Set the run of a flow run, and those of its stages, from RUNNING to ``status``: FINISHED, FAILED or KILLED.

    One that this tracking server does not know is no error.
    """
    experiments = [item.experiment_id for item in client().search_experiments(max_results=EXPERIMENTS)]
    found = client().search_runs(
        experiments, f"tags.`prefect.flow_run_id` = '{flow_run_id}' and attributes.status = 'RUNNING'")
    for run in sorted(found, key=lambda run: run.data.tags.get("xft.kind") != "stage"):  # the parent last
        end_run(run.info.run_id, status)


def log_summary(run_id: str, metrics: dict[str, float], tags: dict[str, str]) -> None:
    """Numbers and notes of a whole run, without steps."""
    now = int(time.time() * 1000)
    log_batch(run_id, metrics=[(name, value, now, 0) for name, value in metrics.items()], tags=tags)


def log_data_set(run_id: str, name: str, digest: str, source: str, profile: str) -> None:
    """Note the instruction data as an input of the run (``digest`` is cut to MLflow's 36 characters)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data_set = Dataset(name=name, digest=digest[:36], source_type="local", source=source, profile=profile)
    client().log_inputs(run_id, datasets=[DatasetInput(data_set, [InputTag("mlflow.data.context", "training")])])






def _find_run(experiment_id: str, flow_run_id: str, kind: str) -> str | None:
    found = client().search_runs(
        [experiment_id], f"tags.`prefect.flow_run_id` = '{flow_run_id}' and tags.`xft.kind` = '{kind}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _experiment_id(name: str) -> str:
    found = client().get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        location = settings().mlflow_artifacts.as_uri() if settings().tracking_is_local else None
        try:
            return str(client().create_experiment(name, artifact_location=location))
        except MlflowException:  # another run made it at the same moment
            found = client().get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise XftError(f"The MLflow experiment {name!r} was deleted. Restore it there, or choose another experiment.")
    return str(found.experiment_id)








