"""Models at an MLflow address, as ordinary directories.

    models:/name@alias, models:/name/3     a version of a registered model
    runs:/<run id>                         a run's result: a stage's artifact, or a pipeline run's merged model

Such a model is one of our artifacts, which the stores have under its key. Of a merged model, the run in MLflow has a copy.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tasks.prefect_log import reason
from tasks.settings import settings
from tasks.tracking.client import TrackingUnavailable, client, explained
from tasks.tracking.model import MODEL_NAME
from xft_core.errors import CheckpointError
from xft_core.files.digests import MODEL_FILE_SUFFIXES
from xft_core.files.temporary import temporary_directory
from xft_core.recipe.steps import MERGED, MERGED_MODEL, MOE_MODEL, TUNED, UPCYCLED

VERSION = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")
RUN = re.compile(r"runs:/([0-9a-f]{32})")
FORMS = "Give models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID."
# MLflow's files next to a model that could be mistaken for parts of it.
OF_MLFLOW = ("input_example.json", "serving_input_example.json", "requirements.txt")
MADE_BY = {MERGED: MERGED_MODEL, UPCYCLED: MOE_MODEL} | {role: model for model, role in TUNED.items()}
MAKERS = ("upcycle", "sft", "merge", "average_models", "choose_checkpoint")


@dataclass(frozen=True)
class Source:
    """An artifact that contains a model, and the MLflow run that has a copy of it (None if there is none). ``plays``: its role
    in its pipeline run (sft_moe, merge)."""

    stage: str
    key: str
    plays: str
    run_id: str | None

    @property
    def model(self) -> str:
        """Its name in reports and metrics: merged, moe, sft, or its role."""
        return MADE_BY.get(self.plays, self.plays)


def is_address(name: str) -> bool:
    """Return whether a model's name is an MLflow address."""
    return name.startswith(("models:/", "runs:/"))


def resolve(address: str) -> Source:
    """Return the artifact behind an address. Raises CheckpointError if it does not exist, TrackingUnavailable."""
    version, run = VERSION.fullmatch(address), RUN.fullmatch(address)
    if version is None and run is None:
        raise CheckpointError(f"{address[:200]!r} is not a model in MLflow. {FORMS}")
    try:
        return _of_version(address, *version.groups()) if version else _of_run(address, str(run and run[1]))
    except CheckpointError:
        raise
    except Exception as error:
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise CheckpointError(f"MLflow at {settings().tracking_shown} has no {address}: {reason(error)}") from None
        raise TrackingUnavailable(f"MLflow at {settings().tracking_shown} cannot be read: {reason(error)}") from error


def download(address: str, run_id: str, directory: Path) -> None:
    """Download the merged model of a run to ``directory``: its own files, without those that MLflow adds.

    Raises CheckpointError if MLflow does not have its weights."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with temporary_directory("transfer", output=directory) as arriving, explained():
        copy = Path(client().download_artifacts(run_id, MODEL_NAME, str(arriving)))
        for path in copy.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.endswith(MODEL_FILE_SUFFIXES) or path.name in OF_MLFLOW:
                path.unlink()
        if not (copy / "config.json").is_file() or not list(copy.glob("*.safetensors")):
            raise CheckpointError(f"{address} has no weights in MLflow: they were too large to be copied there.")
        copy.rename(directory)


def _of_version(address: str, name: str, alias: str | None, number: str | None) -> Source:
    version = (client().get_model_version_by_alias(name, alias) if alias
               else client().get_model_version(name, str(number)))
    if (key := version.tags.get("xft.key")) is None:
        raise CheckpointError(f"{address} was not registered by a pipeline run. Give its directory instead.")
    return Source("merge", key, "merge", version.run_id)


def _of_run(address: str, run_id: str) -> Source:
    tags = client().get_run(run_id).data.tags
    if merged := tags.get("xft.merge.run_id"):
        return Source("merge", client().get_run(merged).data.tags["xft.key"], "merge", run_id)
    if tags.get("xft.stage") not in MAKERS or "xft.key" not in tags:
        raise CheckpointError(
            f"{address} is not a run that made a model. Give a finished pipeline run, or one of its stages "
            f"{', '.join(MAKERS[:3])}.")
    return Source(tags["xft.stage"], tags["xft.key"], tags["xft.role"], None)
