"""The small values that tasks pass to each other. Large ones stay in the store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import role_of


class PipelineRun(BaseModel):
    """The run that a task is part of. ``experiment_id``: experiment that shows its stages, which is a separate one for a
    comparison and its variants. ``run_experiment_id``: experiment of the run itself. ``variant``: its name in its comparison,
    None for a run outside a comparison. ``told_apart_by``: fields that its stages have as parameters."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    flow_run_id: str
    experiment_id: str
    mlflow_run_id: str
    run_experiment_id: str
    variant: str | None = None
    told_apart_by: dict[str, str] = {}


class ArtifactRef(BaseModel):
    """A published artifact: its place, its identity, and the metrics measured while it was created.

    ``role``: its part in the run (``sft_moe``, ``evaluate_merged_0``). ``mlflow_run_id``: the run that shows it within this
    pipeline run. ``recorded``: whether that run has all of it yet.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    role: str
    key: str
    digest: str
    path: Path
    metrics: dict[str, Any]
    reused: bool
    mlflow_run_id: str | None
    recorded: bool = True


class RunOutcome(BaseModel):
    """The results of a completed run: the directories of the report and the merged model, its run in MLflow, a text that names
    its version in the registry, and the number of ``stages``."""

    model_config = ConfigDict(frozen=True)

    report: Path
    merged_model: Path
    mlflow_run_id: str
    registered: str | None
    stages: int


def of_stage(artifacts: Mapping[str, ArtifactRef], recipe: Recipe, stage: str, model: str | None = None) -> ArtifactRef:
    """Return the first of a run's ``artifacts`` that ``stage`` published (for ``model``, see Step). Raises LookupError."""
    return artifacts[role_of(recipe, stage, model)]


def base_model(recipe: Recipe) -> str:
    """Return the dense model's name in the form that stages take: ``owner/model@revision`` if a revision is given."""
    return f"{recipe.model.path}@{recipe.model.revision}" if recipe.model.revision else recipe.model.path
