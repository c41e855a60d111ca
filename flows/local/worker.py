"""The worker of ``xft ui``: it executes the runs started in Prefect's pages, as processes on this machine."""

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from tasks.settings import Settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

CANCEL_SECONDS = 30


def worker_command(pool: str) -> list[str]:
    """Return the command of a process worker for ``pool``."""
    return [
        sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", pool, "--type", "process",
        "--name", "xft-ui", "--install-policy", "never"]


def worker_environment(current: Settings, api: str, mlflow_ui: str) -> dict[str, str]:
    """Return the environment of the worker's runs: the places that ``xft run`` uses here, and the address of MLflow's pages.

    Runs use MLflow's database rather than its server. An experiment created through the server keeps its files behind the
    server's address, where ``xft run`` without a server could not add to it, and models would be copied instead of linked.
    """
    return os.environ | {
        "PREFECT_API_URL": api, "XFT_HOME": str(current.home), "MLFLOW_TRACKING_URI": current.tracking_uri,
        "XFT_MLFLOW_UI_URL": current.mlflow_ui or mlflow_ui} | ({} if current.mlflow_ui else {"XFT_ONE_ADDRESS": "1"})


def cancel_runs(pool: str) -> int:
    """Cancel the runs in ``pool`` and wait until they end, so that none stays recorded as running. Returns their number."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    with get_client(sync_client=True) as client:
        found = _unfinished(client, pool)
        for run in found:
            client.set_flow_run_state(run.id, Cancelling(message="xft ui was stopped."))
        deadline = time.monotonic() + CANCEL_SECONDS
        while _unfinished(client, pool) and time.monotonic() < deadline:
            time.sleep(0.5)
    return len(found)


def close_abandoned_runs(pool: str) -> None:
    """Mark runs as Crashed if their worker was killed. Call it only while ``pool`` has no worker."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        for run in _unfinished(client, pool):
            message = "Its process was killed. Retry continues from the finished stages."
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def _unfinished(client: Any, pool: str) -> "list[FlowRun]":
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import StateType

    under_way = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    found: list[FlowRun] = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=under_way))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])))
    return found
