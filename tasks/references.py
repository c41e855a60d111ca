"""The small values that travel between tasks; the big ones stay in the store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import role_of


class PipelineRun(BaseModel):
    """What every task is told about the run that it is part of. ``experiment_id``: where its stages are shown, which for
    a comparison and its variants is an experiment beside theirs; ``run_experiment_id``: where the run itself is. ``variant``:
    its name in its comparison, None for a run of its own; ``told_apart_by``: fields that its stages have as parameters."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    flow_run_id: str
    experiment_id: str
    mlflow_run_id: str
    run_experiment_id: str
    variant: str | None = None
    told_apart_by: dict[str, str] = {}


class ArtifactRef(BaseModel):
    """A published artifact: where it is, what it is, and the numbers measured while it was made.

    ``role`` says which part it plays in the run (``sft_moe``, ``evaluate_merged_0``); ``mlflow_run_id`` is the run that
    shows it within this pipeline run; ``recorded``: whether all of it is there yet.
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
    """What a completed run leaves: directories of report and merged model, its run in MLflow, in words its version in the
    registry, and how many ``stages`` it had."""

    model_config = ConfigDict(frozen=True)

    report: Path
    merged_model: Path
    mlflow_run_id: str
    registered: str | None
    stages: int


def of_stage(artifacts: Mapping[str, ArtifactRef], recipe: Recipe, stage: str, model: str | None = None) -> ArtifactRef:
    """Of a run's ``artifacts`` by role, the first that ``stage`` published (for ``model``, see Step). Raises LookupError."""
    return artifacts[role_of(recipe, stage, model)]


def base_model(recipe: Recipe) -> str:
    """The dense model's name as stages take it: ``owner/model@revision`` when a revision is given."""
    return f"{recipe.model.path}@{recipe.model.revision}" if recipe.model.revision else recipe.model.path
