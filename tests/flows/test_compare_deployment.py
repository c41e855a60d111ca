"""A comparison that a real server hands to a real worker: with one slot in the pool, with several, and cancelled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Scheduled

from flows.local.server_secret import server_auth
from tests.flows.conftest import REPOSITORY
from tests.flows.test_cli import free_port
from tests.flows.test_compare import NAMES, VALUES

pytestmark = pytest.mark.slow
GRID = ["merge.method,merge.shared_expert_weight=[[uniform,0.5],[ewa,0.75]]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui")


@pytest.fixture(scope="module")
def api(home: Path) -> Iterator[SyncPrefectClient]:
    """Start ``xft ui`` with its own home, and a client of its server."""
    prefect_port, mlflow_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"XFT_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "ui", "--prefect-port", str(prefect_port), "--mlflow-port",
         str(mlflow_port)], env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, "xft ui did not start"
        updates = {PREFECT_API_URL: f"http://127.0.0.1:{prefect_port}/api", PREFECT_API_AUTH_STRING: server_auth(home)}
        with temporary_settings(updates=updates), get_client(sync_client=True) as client:
            yield client
        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 0
    finally:
        process.kill()
        process.stdout.close()


@contextmanager
def places(api: SyncPrefectClient, number: int | None) -> Iterator[None]:
    api.update_work_pool("xft", WorkPoolUpdate(concurrency_limit=number))
    yield
    api.update_work_pool("xft", WorkPoolUpdate(concurrency_limit=None))


def start(api: SyncPrefectClient, **changes: Any) -> FlowRun:
    deployment = api.read_deployment_by_name("compare/compare")
    parameters = {"recipe_file": "", "grid": GRID, "run_in": "deployment", **VALUES, **changes}
    return api.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def wait(api: SyncPrefectClient, run: FlowRun, seconds: float = 3600) -> FlowRun:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run = api.read_flow_run(run.id)
        if run.state and run.state.is_final():
            return run
        time.sleep(0.5)
    raise AssertionError(f"{run.name} is {run.state_name} after {seconds} s")


def variants(api: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    return [item for item in api.read_flow_runs() if f"comparison:{run.id}" in item.tags]


def test_a_comparison_that_fills_the_only_place_carries_its_variants_out_itself(api: SyncPrefectClient) -> None:
    with places(api, 1):
        done = wait(api, start(api))
    assert done.state and done.state.is_completed(), done.state
    found = variants(api, done)
    assert {run.name for run in found} == {f"varied {name}" for name in NAMES}
    assert all(run.state and run.state.is_completed() for run in found)
    assert all(run.infrastructure_pid is None for run in found)  # no process was started for them
    links = {item.key: str(item.data) for item in api.read_artifacts()}
    assert "/#/compare-runs?runs=" in links["compare-in-mlflow"]


def test_with_room_the_worker_takes_them(api: SyncPrefectClient) -> None:
    done = wait(api, start(api))
    assert done.state and done.state.is_completed(), done.state
    found = variants(api, done)
    assert len(found) == len(NAMES)
    assert all(run.infrastructure_pid for run in found)
    assert all("xft" in run.tags for run in found)  # the tag of the comparison


def test_cancelling_the_comparison_cancels_its_variants(api: SyncPrefectClient) -> None:
    long = VALUES["sft"] | {"max_steps": 1000, "epochs": 1000}  # type: ignore[operator]
    run = start(api, name="stopped", sft=long, grid=["sft.weight_decay=[0.1,0.2]"])
    deadline = time.monotonic() + 3600
    while not any(item.state and item.state.is_running() for item in variants(api, run)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    api.set_flow_run_state(run.id, Cancelling())
    assert wait(api, run).state_name == "Cancelled"
    for variant in variants(api, run):
        assert wait(api, variant).state_name == "Cancelled"


def test_after_a_retry_runs_of_the_same_recipe_are_adopted_and_others_started_again(api: SyncPrefectClient) -> None:
    done = wait(api, start(api, name="retried"))
    first = {run.name: run for run in variants(api, done)}
    changed, kept = sorted(first)
    stale = {**first[changed].parameters, "sft": {**first[changed].parameters["sft"], "weight_decay": 0.3}}
    api.update_flow_run(first[changed].id, parameters=stale)  # as if its file had been changed since
    api.set_flow_run_state(done.id, Scheduled(), force=True)
    done = wait(api, done)
    assert done.state and done.state.is_completed() and done.run_count == 2
    names = [run.name for run in variants(api, done)]
    assert (names.count(changed), names.count(kept)) == (2, 1)
