"""The champion's files at a place of your own: what the automation publish-champion runs when the alias has moved."""

import threading
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from tasks.model_copy import copy_model


def run_name() -> str:
    """A run is called by its model."""
    return f"publish {flow_run.parameters.get('model')}"


@flow(name="publish-champion", persist_result=False, flow_run_name=run_name)
def publish_champion(model: str = "models:/demo@champion", destination: str = "") -> str:
    """Copy a model's files to a directory, whole or not at all; returns the directory.

    Args:
        model: The model, by any name that model.path takes.
        destination: The directory; its parent must be there. What is in it is replaced. Empty: published/NAME in XFT_HOME,
            NAME being that of the registered model.
    """
    target = copy_model(model, Path(destination) if destination else None, threading.Event(), get_run_logger())
    return str(target)
