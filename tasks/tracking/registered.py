"""Registered models as a start: ``models:/name@alias`` or ``models:/name/version`` to the directory of its files."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.prefect_log import Logger
from tasks.settings import settings
from tasks.tracking.client import client, explained
from xft_core.errors import CheckpointError
from xft_core.files.disk import disk_full_is_an_error, locked
from xft_core.files.temporary import temporary_directory
from xft_core.store.artifacts import find

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"
_FORM = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
KEY_LENGTH = 32  # as in tasks/execution/carry_out.py


def is_address(name: str) -> bool:
    """Whether a model's name is one of MLflow's registry."""
    return name.startswith(SCHEME)


def check(name: str) -> None:
    """Ask whether there is such a version. Raises as ``files_of``."""
    with explained():
        _version(name)


def files_of(name: str, logger: Logger) -> str:
    """The local directory of a registered version: the artifact that it was registered from, where the store has it; else its
    files as MLflow has them; or the S3 address where they are. Raises CheckpointError for what is not registered, or has no
    weights; TrackingUnavailable."""
    with explained():
        version = _version(name)
        logger.info("%s is version %s of %s", name, version.version, version.name)
        key = version.tags.get("xft.key", "")
        directory = settings().artifacts / "merge" / key[:KEY_LENGTH]
        if key and find(directory, key) is not None:
            return str(directory)
        source = version.source or ""
        return source if source.startswith("s3://") else str(_downloaded(name, version, source))


def _version(name: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    found = _FORM.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{name[:200]!r} names no registered model: give models:/NAME@ALIAS (models:/demo@champion) or "
                              "models:/NAME/VERSION.")
    try:
        if found["alias"]:
            return client().get_model_version_by_alias(found["name"], found["alias"])
        return client().get_model_version(found["name"], found["version"])
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise CheckpointError(
                f"MLflow's registry has no {name[:200]!r}. Look there which models and aliases it has; a first run "
                "has to start from another model.") from None
        raise


def _downloaded(name: str, version: "ModelVersion", source: str) -> Path:
    from mlflow.artifacts import download_artifacts

    directory = settings().models / f"registered-{version.name}-{version.version}"
    with locked(directory), disk_full_is_an_error(directory):
        if not directory.is_dir():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with temporary_directory("transfer", output=directory) as arriving:
                found = Path(download_artifacts(
                    artifact_uri=source, dst_path=str(arriving / "files"), tracking_uri=settings().tracking_uri))
                if not (found / "config.json").is_file() or not any(found.glob("*.safetensors")):
                    raise CheckpointError(
                        f"{name} (version {version.version}) has no weights in MLflow: they were larger than "
                        "XFT_MLFLOW_COPY_LIMIT_MB. Use an object store (XFT_STORE), or give the directory of the model.")
                found.rename(directory)
    return directory
