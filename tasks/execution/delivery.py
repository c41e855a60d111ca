"""Deliver results to unavailable servers: retry with growing pauses, for XFT_DELIVERY_SECONDS.

While stages work, nothing waits for MLflow or, once an artifact is made, for the object store: curves and artifacts are on
disk. The run delivers them at its end. If a server stays unavailable, the run ends with its message, all results are kept, and
running the recipe again delivers them.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from tasks.object_store import artifacts as remote
from tasks.prefect_log import Logger
from tasks.references import ArtifactRef, PipelineRun
from tasks.settings import settings
from tasks.stopping import RunStopped
from tasks.tracking.client import TrackingRefused
from tasks.tracking.stage_run import StageRun
from xft_core.errors import XftError
from xft_core.store.manifest import read_manifest

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REFUSALS = 4  # more than two runs can cause by writing at the same time

Result = TypeVar("Result")


def insist(ask: Callable[[], Result], stop: threading.Event, logger: Logger) -> Result:
    """Call ``ask`` until the server that it needs answers, and return its result.

    Raises an error that may pass, marked as one that does not pass, after XFT_DELIVERY_SECONDS or after MLflow refused
    REFUSALS times. Raises any other error at once, and RunStopped if ``stop`` is set.
    """
    deadline, pause, said = time.monotonic() + settings().delivery_seconds, FIRST_PAUSE_SECONDS, False
    refusals = 0
    while True:
        try:
            return ask()
        except XftError as error:
            if not error.may_pass:
                raise
            refusals += isinstance(error, TrackingRefused)
            if time.monotonic() + pause > deadline or refusals == REFUSALS:
                error.may_pass = False  # the caller has waited long enough: Prefect must not start again
                raise
            if not said:
                logger.warning("%s Retrying for up to %d s.", error, settings().delivery_seconds)
            said = True
        if stop.wait(pause):
            raise RunStopped("The run was stopped while it waited for a server. To continue, start the same run again.")
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def deliver_rest(run: PipelineRun, artifacts: Iterable[ArtifactRef], stop: threading.Event, logger: Logger) -> None:
    """Deliver what the object store or MLflow missed while the run's stages worked.

    Raises StoreUnavailable, StoreRefused, TrackingUnavailable, RunStopped.
    """
    for item in artifacts:
        insist(lambda item=item: remote.deliver(item.path, stop), stop, logger)  # type: ignore[misc]
        if not item.recorded:
            insist(lambda item=item: _record(run, item, logger), stop, logger)  # type: ignore[misc]


def _record(run: PipelineRun, item: ArtifactRef, logger: Logger) -> None:
    StageRun(run, item.stage, item.role, logger, again=True).finish(item.path, read_manifest(item.path), item.reused)
