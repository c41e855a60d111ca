"""What a run owes to servers that are away: asked for again, with growing pauses, for XFT_DELIVERY_SECONDS.

While stages work nothing waits for MLflow or, once an artifact is made, for the object store: curves and artifacts are on
disk. The end of a run insists. If a server stays away, the run ends with its message, everything computed is kept, and the
same recipe again delivers it.
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
REFUSALS = 4  # more than two runs that write at once can cause by accident

Result = TypeVar("Result")


def insist(ask: Callable[[], Result], stop: threading.Event, logger: Logger) -> Result:
    """What ``ask`` returns once the server that it needs answers.

    Raises its error, marked as one that does not pass, when it may pass and did not within XFT_DELIVERY_SECONDS, or when
    MLflow refused REFUSALS times; any other error at once; RunStopped when ``stop`` is set.
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
                error.may_pass = False  # who called this has waited long enough: Prefect must not begin again
                raise
            if not said:
                logger.warning("%s Asked again for %d s.", error, settings().delivery_seconds)
            said = True
        if stop.wait(pause):
            raise RunStopped("The run was stopped while it waited for a server. Start the same run again to continue.")
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def deliver_rest(run: PipelineRun, artifacts: Iterable[ArtifactRef], stop: threading.Event, logger: Logger) -> None:
    """Send what the object store or MLflow was away for while the run's stages worked.

    Raises StoreUnavailable, StoreRefused, TrackingUnavailable, RunStopped.
    """
    for item in artifacts:
        insist(lambda item=item: remote.deliver(item.path, stop), stop, logger)  # type: ignore[misc]
        if not item.recorded:
            insist(lambda item=item: _record(run, item, logger), stop, logger)  # type: ignore[misc]


def _record(run: PipelineRun, item: ArtifactRef, logger: Logger) -> None:
    StageRun(run, item.stage, item.role, logger, again=True).finish(item.path, read_manifest(item.path), item.reused)
