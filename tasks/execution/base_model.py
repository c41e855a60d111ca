"""The base model as a directory, wherever its name points: here, on the Hub, at an S3 address, in MLflow.

A model in MLflow is one of our artifacts. If the local store has it, it is used there, so that artifacts made from it are
reused too. Otherwise it comes from the object store, or from the files of its run in MLflow.
"""

import threading
from pathlib import Path

from tasks.object_store import artifacts, models
from tasks.prefect_log import Logger
from tasks.settings import KEY_LENGTH, settings
from tasks.tracking import model_source
from xft_core.errors import CheckpointError
from xft_core.files.disk import locked
from xft_core.store.artifacts import find


def is_elsewhere(name: str) -> bool:
    """Return whether a model must be fetched before stages can read it."""
    return models.is_address(name) or model_source.is_address(name)


def check(name: str) -> None:
    """Check that a model of ``is_elsewhere`` exists, without fetching it. Raises as ``fetch``."""
    if models.is_address(name):
        models.check(name)
    else:
        model_source.resolve(name)


def fetch(name: str, stop: threading.Event, logger: Logger) -> Path:
    """Fetch such a model and return its local directory. Raises XftError if it does not exist or cannot be fetched."""
    if models.is_address(name):
        return models.fetch(name, stop, logger)
    source = model_source.resolve(name)
    directory = settings().artifacts / source.stage / source.key[:KEY_LENGTH]
    if not find(directory, source.key) and not artifacts.fetch(directory, source.key, stop):
        if source.run_id is None:
            raise CheckpointError(
                f"{name} is the artifact {source.stage}/{source.key[:KEY_LENGTH]}, which is neither in this store nor in an "
                "object store (XFT_STORE). Run its recipe here.")
        directory = settings().models / source.key[:KEY_LENGTH]
        with locked(directory):
            if not directory.is_dir():
                model_source.download(name, source.run_id, directory)
    logger.info("%s is %s", name, directory)
    return directory
