"""A worker's flow run with wrong settings: one message that names them all, and no stack trace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.workers.process import ProcessJobConfiguration

from tests.flows.conftest import REPOSITORY
from tests.tasks.test_settings import WRONG

DEMO = "deployments/recipes/demo.yaml"


@pytest.mark.parametrize(("name", "entrypoint", "parameters"), [
    ("pipeline", "flows.pipeline.pipeline", {"recipe_file": DEMO}),
    pytest.param("compare", "flows.compare.compare", {"recipe_file": DEMO, "grid": ["seed=[0,1]"]}, marks=pytest.mark.slow),
    pytest.param("evaluate", "flows.evaluate.evaluate_model", {"model": {"path": "demo:model"}}, marks=pytest.mark.slow)])
def test_wrong_settings_of_a_worker_are_one_message(
        name: str, entrypoint: str, parameters: dict[str, Any], prefect_api: str, tmp_path: Path) -> None:
    with get_client(sync_client=True) as client:
        deployment_id = client.create_deployment(
            client.create_flow_from_name(name), f"{name}-with-wrong-settings", entrypoint=entrypoint, path=str(REPOSITORY),
            enforce_parameter_schema=False)
        run = client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
        # The environment in which a process worker starts a run: its own, and the run's ID.
        environment = os.environ | WRONG | {
            "PREFECT__FLOW_RUN_ID": str(run.id), "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY),
            "PREFECT_API_URL": prefect_api}
        done = subprocess.run(
            [sys.executable, "-m", "prefect.engine"], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        state = client.read_flow_run(run.id).state
    assert state and state.is_failed() and state.message
    beginning, _, first = state.message.splitlines()[0].partition("XftError: ")
    assert beginning == "Flow run encountered an exception: "
    told = {line.split()[0] for line in (first, *state.message.splitlines()[1:])}
    assert told == WRONG.keys() - {"PREFECT_API_URL"}  # a worker sets its own; with a wrong one, the message would reach nobody
    said = done.stdout + done.stderr
    assert said.count("XFT_COMPUTE_SLOTS is 'abc'") == 1
    assert "Traceback" not in said and "unexpected exception" not in said


def test_a_secret_may_come_from_a_block(prefect_api: str) -> None:
    """A pool's environment names the block; the worker fills in the secret for each run."""
    template = json.loads((REPOSITORY / "deployments" / "work_pools" / "process.json").read_text())
    Secret(value="hf_of_the_block").save("hf-token", overwrite=True)  # type: ignore[call-arg]
    job: Any = run_coro_as_sync(ProcessJobConfiguration.from_template_and_values(
        template, {"env": {"HF_TOKEN": "{{ prefect.blocks.secret.hf-token }}"}}))
    assert isinstance(job, ProcessJobConfiguration) and job.env["HF_TOKEN"] == "hf_of_the_block"
