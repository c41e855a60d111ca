"""Runs with nothing left to do: what ``xft run`` shows again at once, without a server and without a new run in MLflow.

    <XFT_HOME>/finished/<digest of recipe, tracking server and version>.json

Every run that completes leaves its outcome there. The same recipe is finished as long as the store has the artifact of
each of its steps under the key that the step has now: inputs are hashed again, and every file is verified.

No Prefect and no MLflow here: importing them takes longer than all of this.
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
    """A completed run: where it is recorded, what it left, and when it ended (UTC); ``sha256`` of all this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow_run_id: str
    run_experiment_id: str
    outcome: RunOutcome
    ended: str
    sha256: str = ""

    def fields_digest(self) -> str:
        """sha256 (hex) of the other fields."""
        return digest_of(self.model_dump(mode="json", exclude={"sha256"}))


def remember(run: PipelineRun, outcome: RunOutcome) -> None:
    """Write down what a completed run left. A disk that is full then loses this note alone."""
    finished = FinishedRun(
        flow_run_id=run.flow_run_id, run_experiment_id=run.run_experiment_id, ended=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        outcome=RunOutcome(**{name: getattr(outcome, name) for name in RunOutcome.model_fields}))
    path = _path(run.recipe)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, finished.model_copy(update={"sha256": finished.fields_digest()}).model_dump_json(indent=1))


def finished_run(recipe: Recipe) -> FinishedRun | None:
    """The completed run of this recipe; None without one, and if a new run would have anything to make.

    What only a run can find out (models and data elsewhere, an object store) is left to a run. Damage is set aside.
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
    """Whether the store has every step's artifact whole, those that ``outcome`` names among them."""
    made = dict[str, Path]()
    try:
        for step in pipeline_steps(recipe):
            config = STAGES[step.stage](
                output=settings().artifacts, **step.fields(base_model(recipe), lambda role: str(made[role])))
            key = stage_key(config)
            made[step.role] = settings().artifacts / step.stage / key[:KEY_LENGTH]
            if find(made[step.role], key) is None:
                return False
    except (XftError, OSError):  # a run says it with its reason
        return False
    return {outcome.report, outcome.merged_model} <= set(made.values())
