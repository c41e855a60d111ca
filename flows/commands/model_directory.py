"""Find the files of a model that is given to a command by name."""

import logging
import threading
from pathlib import Path

from tasks.execution import base_model
from xft_core.files.locate import find_model


def model_directory(name: str) -> Path:
    """Return the directory of a model: a local one, the demo's, a snapshot from the Hub, or a copy fetched from S3 or MLflow.

    Raises CheckpointError if there is no such model, and the XftError of a server that does not provide it.
    """
    if base_model.is_elsewhere(name):
        return base_model.fetch(name, threading.Event(), logging.getLogger(__name__))
    return find_model(name)
