"""Which failures of a task are retried, and the options that tasks share."""

import errno
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import exponential_backoff

from xft_core.errors import StageKilled, XftError

HOPELESS_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS})


def may_pass(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task may succeed unchanged. Prefect's ``retry_condition_fn``: it must be a plain function."""
    error = state.data
    if isinstance(error, StageKilled):
        return run.run_count <= 1  # too little memory is that the second time too
    if isinstance(error, XftError):
        return error.may_pass
    return isinstance(error, OSError) and error.errno not in HOPELESS_ERRNOS


def run_name() -> str:
    """A task run is called by the role its stage plays: ``sft-baseline``, ``evaluate-merged-0``."""
    return str(task_run.parameters["step"].role).replace("_", "-")


# Options of every task that talks to something that may fail and come back. Prefect keeps no results: the store does.
RETRIED: dict[str, Any] = {
    "persist_result": False,
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
STAGE_TASK: dict[str, Any] = RETRIED | {"task_run_name": run_name}
PUBLISH_TASK: dict[str, Any] = RETRIED | {"name": "publish", "task_run_name": "publish"}
