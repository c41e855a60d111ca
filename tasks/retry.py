"""Which task failures are retried, and the options that tasks share."""

import errno
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import exponential_backoff

from xft_core.errors import StageKilled, XftError

HOPELESS_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS})


def may_pass(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed task may succeed unchanged. As Prefect's ``retry_condition_fn``, it must be a plain function."""
    error = state.data
    if isinstance(error, StageKilled):
        return run.run_count <= 1  # if it ran out of memory, a third attempt would too
    if isinstance(error, XftError):
        return error.may_pass
    return isinstance(error, OSError) and error.errno not in HOPELESS_ERRNOS


def run_name() -> str:
    """Name a task run after its stage's role: ``sft-baseline``, ``evaluate-merged-0``."""
    return str(task_run.parameters["step"].role).replace("_", "-")


# Options of every task that uses a service which may fail and recover. Prefect keeps no results: the store does.
RETRIED: dict[str, Any] = {
    "persist_result": False,
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
STAGE_TASK: dict[str, Any] = RETRIED | {"task_run_name": run_name}
PUBLISH_TASK: dict[str, Any] = RETRIED | {"name": "publish", "task_run_name": "publish"}
