"""Runs with nothing left to do: ``xft run`` shows them again at once, without a server and without a new run in MLflow.

    <XFT_HOME>/finished/<digest of recipe, tracking server and version>.json

Every completed run leaves its outcome there. The recipe stays finished as long as the store has the artifact of each of its
steps under the step's present key: inputs are hashed again, and every file is verified.

Uses neither Prefect nor MLflow: importing them takes longer than all of this.
"""

from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.execution import base_model as base_models
from tasks.object_store import data, run_records
from tasks.references import PipelineRun, RunOutcome, base_model
from tasks.settings import KEY_LENGTH, settings
from xft_core.errors import XftError
from xft_core.files.digests import digest_of
from xft_core.files.disk import write_whole
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import pipeline_steps
from xft_core.stages.configs import STAGES
from xft_core.stages.run import stage_key
from xft_core.store.artifacts import find


class FinishedRun(BaseModel):
    """A completed run: where it is recorded, its outcome, when it ended (UTC), and ``sha256`` of all this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow_run_id: str
    run_experiment_id: str
    outcome: RunOutcome
    ended: str
    sha256: str = ""

    def fields_digest(self) -> str:
        """Return the sha256 (hex) of the other fields."""
        return digest_of(self.model_dump(mode="json", exclude={"sha256"}))


def remember(run: PipelineRun, outcome: RunOutcome) -> None:
    """Write down a completed run's outcome. If the disk is full, only this note is lost."""
    finished = FinishedRun(
        flow_run_id=run.flow_run_id, run_experiment_id=run.run_experiment_id, ended=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        outcome=RunOutcome(**{name: getattr(outcome, name) for name in RunOutcome.model_fields}))
    path = _path(run.recipe)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, finished.model_copy(update={"sha256": finished.fields_digest()}).model_dump_json(indent=1))


def finished_run(recipe: Recipe) -> FinishedRun | None:
    """Return the completed run of this recipe; None if there is none, or if a new run would have work to do.

    Cases that only a run can check (remote models and data, an object store) are left to a run. Damaged files count as missing.
    """
    found = _read(_path(recipe))
    if found is None or settings().store or _elsewhere(recipe) or not _in_store(recipe, found.outcome):
        return None
    run_records.renew(found.flow_run_id)
    return found


def _path(recipe: Recipe) -> Path:
    recorded = [recipe.model_dump(mode="json"), settings().tracking_uri, version("xft-pipeline")]
    return settings().home / "finished" / f"{digest_of(recorded)}.json"


def _read(path: Path) -> FinishedRun | None:
    try:
        found = FinishedRun.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.sha256 == found.fields_digest() else None


def _elsewhere(recipe: Recipe) -> bool:
    named = (*recipe.data.paths, recipe.data.held_out_path, recipe.data.reserved_path, *recipe.evaluate.held_out_data)
    return base_models.is_elsewhere(recipe.model.path) or any(data.is_address(name) for name in named if name)


def _in_store(recipe: Recipe, outcome: RunOutcome) -> bool:
    """Return whether the store has every step's artifact intact, including those that ``outcome`` names."""
    made = dict[str, Path]()
    try:
        for step in pipeline_steps(recipe):
            config = STAGES[step.stage](
                output=settings().artifacts, **step.fields(base_model(recipe), lambda role: str(made[role])))
            key = stage_key(config)
            made[step.role] = settings().artifacts / step.stage / key[:KEY_LENGTH]
            if find(made[step.role], key) is None:
                return False
    except (XftError, OSError):  # a run reports it, with the reason
        return False
    return {outcome.report, outcome.merged_model} <= set(made.values())
