"""MLflow: one parent run for a pipeline run, one child for each of its stages.

All calls name runs by id: MLflow's "active run" belongs to a thread, and stages run in several threads.
"""

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import yaml

from tasks import mlflow_pages
from tasks.prefect_log import reason
from tasks.references import PipelineRun
from tasks.settings import settings
from tasks.tracking.client import TrackingUnavailable, client, log_batch
from tasks.tracking.experiments import DESCRIPTION, STAGES_EXPERIMENT, experiment_id
from tasks.tracking.files import log_text
from tasks.tracking.parameters import VARIES, run_parameters, stage_parameters, variant_parameters
from tasks.tracking.saved_views import begin_with
from tasks.tracking.source import source_tags
from tasks.variant_tags import VariantOf
from xft_core.errors import XftError
from xft_core.recipe.sections import Recipe

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENTS = 1000  # maximum number to search for a run
NAME, NUMBER = "xft.name", "xft.number"
RECIPE_FILE = "recipe.yaml"
# Columns of a table of pipeline runs, and whether they are numeric.
TOLD_APART_BY = {
    "upcycle.num_experts": True, "upcycle.normalization": False, "merge.method": False, "seed": True, "sft.learning_rate": True}


def open_run(
    recipe: Recipe, flow_run_id: str, name: str, kind: str = "pipeline", sections: frozenset[str] | None = None,
    without: frozenset[str] = frozenset(), variant: VariantOf | None = None,
) -> PipelineRun:
    """Open the parent run of a pipeline run: a new one, or the one that an earlier attempt of the same flow run opened.

    ``kind``: the tag that distinguishes it from runs of other flows. ``sections``: parts of the recipe that apply to it;
    ``without``: fields without a single value. A ``variant`` is a child of its comparison's run.

    Raises TrackingUnavailable if MLflow cannot be reached, XftError if the experiment was deleted there.
    """
    try:
        own_id = stages_id = experiment_id(recipe.experiment, "comparison" if variant else kind)
        if variant or kind == "comparison":
            stages_id = experiment_id(recipe.experiment + STAGES_EXPERIMENT, "stages")
        if known := _find_run(own_id, flow_run_id, kind):
            run_id = str(known.info.run_id)
            client().update_run(run_id, status="RUNNING")
        else:
            tags = {"xft.kind": kind, "xft.recipe": recipe.name, "prefect.flow_run_id": flow_run_id, NAME: _plain(name)}
            parameters = run_parameters(recipe, sections, without)
            if without:
                tags[VARIES] = json.dumps(sorted(without))
            if variant:
                tags |= {"xft.variant": variant.name, "xft.group": variant.group}
                if parent := _find_run(own_id, variant.comparison, "comparison"):
                    tags["mlflow.parentRunId"] = str(parent.info.run_id)
                    parameters = variant_parameters(recipe, parent.data.tags) or parameters
            number = _count(own_id, name) + 1
            tags |= source_tags(kind) | {DESCRIPTION: _links(flow_run_id), NUMBER: str(number)}
            shown = f"{name} ({number})" if number > 1 else name
            run_id = str(client().create_run(own_id, run_name=shown, tags=tags).info.run_id)
            log_batch(run_id, params=parameters)
            with suppress(Exception):  # the artifact store may be unavailable; the end of the run retries
                log_text(run_id, recipe_text(recipe, sections), RECIPE_FILE)
                if kind == "pipeline" and not variant:
                    begin_with(own_id, TOLD_APART_BY)
    except XftError:
        raise
    except Exception as error:
        raise TrackingUnavailable(f"MLflow at {settings().tracking_shown} cannot be used: {reason(error)}") from error
    return PipelineRun(
        recipe=recipe, flow_run_id=flow_run_id, experiment_id=stages_id, mlflow_run_id=run_id, run_experiment_id=own_id,
        variant=variant.name if variant else None, told_apart_by=stage_parameters(recipe) if kind == "pipeline" else {})


def recipe_text(recipe: Recipe, sections: frozenset[str] | None = None) -> str:
    """Return the recipe in force as a recipe file: all of it, or only the ``sections`` that apply."""
    content = recipe.model_dump(mode="json")
    kept = {name: value for name, value in content.items() if sections is None or name in sections}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _count(experiment: str, name: str) -> int:
    """Return how many runs have that name."""
    newest = client().search_runs(
        [experiment], f"tags.`{NAME}` = '{_plain(name)}'", max_results=1, order_by=["attributes.start_time DESC"])
    return int(newest[0].data.tags.get(NUMBER, 1)) if newest else 0


def _plain(name: str) -> str:
    """Return ``name`` without the characters that end a string in MLflow's search."""
    return name.replace("'", "").replace("\\", "")


def end_run(run_id: str, status: str) -> None:
    """Set a run's final status: FINISHED, FAILED or KILLED."""
    client().set_terminated(run_id, status)


def close_runs(flow_run_id: str, status: str) -> None:
    """Set the run of a flow run, and those of its stages, from RUNNING to ``status``: FINISHED, FAILED or KILLED.

    A run that this tracking server does not know is not an error.
    """
    experiments = [item.experiment_id for item in client().search_experiments(max_results=EXPERIMENTS)]
    found = client().search_runs(
        experiments, f"tags.`prefect.flow_run_id` = '{flow_run_id}' and attributes.status = 'RUNNING'")
    for run in sorted(found, key=lambda run: run.data.tags.get("xft.kind") != "stage"):  # the parent last
        end_run(run.info.run_id, status)


def log_summary(run_id: str, metrics: dict[str, float], tags: dict[str, str]) -> None:
    """Log metrics and tags of an entire run, without steps."""
    now = int(time.time() * 1000)
    log_batch(run_id, metrics=[(name, value, now, 0) for name, value in metrics.items()], tags=tags)


def note(run: PipelineRun, text: str) -> str:
    """Return ``text`` as the description of a run, below links to the run's other places."""
    return f"{_links(run.flow_run_id)}\n\n{text}"


def _links(flow_run_id: str) -> str:
    prefect, store = settings().prefect_links, settings().store
    places = [] if prefect is None else [
        f"[Log, graph and artifacts in Prefect]({mlflow_pages.prefect_run_page(prefect, flow_run_id)})"]
    places += ["recipe: `recipe.yaml` in Artifacts", *([f"object store: `{store}`"] if store else [])]
    return " · ".join(places)


def _find_run(experiment: str, flow_run_id: str, kind: str) -> "Run | None":
    found = client().search_runs(
        [experiment], f"tags.`prefect.flow_run_id` = '{flow_run_id}' and tags.`xft.kind` = '{kind}'", max_results=1)
    return found[0] if found else None
