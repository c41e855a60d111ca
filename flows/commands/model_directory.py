"""The files of a model that a command was given by name."""

import logging
import threading
from pathlib import Path

from tasks.object_store import models
from xft_core.files.locate import find_model


def model_directory(name: str) -> Path:
    """The directory of a model: a local one, the demo's, a snapshot from the Hub, or what an S3 address is fetched to.

    Raises CheckpointError when there is no such model, StoreRefused, StoreUnavailable.
    """
    if models.is_address(name):
        return models.fetch(name, threading.Event(), logging.getLogger(__name__))
    return find_model(name)
