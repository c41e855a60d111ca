"""The files of a model that a command was given by name."""

import logging
import threading
from pathlib import Path

from tasks.execution import base_model
from xft_core.files.locate import find_model


def model_directory(name: str) -> Path:
    """The directory of a model: a local one, the demo's, a snapshot from the Hub, or what an address in S3 or MLflow is fetched
    to.

    Raises CheckpointError when there is no such model, and the XftError of a server that does not give it.
    """
    if base_model.is_elsewhere(name):
        return base_model.fetch(name, threading.Event(), logging.getLogger(__name__))
    return find_model(name)
