"""A schedule fires: the first run of a recipe runs all stages, and the next one reuses them all."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.flows.conftest import REPOSITORY
from tests.ui.xft_ui import XftUi, wait_for

pytestmark = pytest.mark.slow
INTERVAL_SECONDS = 20


@pytest.fixture
def scheduled(ui: XftUi, tmp_path: Path, write_recipe: Callable[..., Path]) -> Iterator[str]:
    """``nightly`` from prefect.yaml, but every 20 seconds and with a tiny recipe, deployed as a user would."""
    content = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    nightly = next(item for item in content["deployments"] if item["name"] == "nightly")
    nightly |= {"name": "often", "parameters": nightly["parameters"] | {"recipe_file": str(write_recipe(seed=31))}}
    nightly["schedules"] = [{"interval": INTERVAL_SECONDS, "timezone": "Etc/UTC", "slug": "often", "active": True}]
    content |= {"deployments": [nightly], "pull": [
        {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}]}
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)], check=True,
        cwd=REPOSITORY, env=ui.shell())
    yield "often"
    httpx.delete(f"{ui.prefect}/api/deployments/{ui.deployment_id('often')}", auth=ui.secret).raise_for_status()


def test_a_schedule_fires_and_the_second_run_does_no_work(ui: XftUi, scheduled: str) -> None:
    def completed() -> list[str]:
        # A start while the last run is still running is rejected, because of nightly's limit.
        return [run["id"] for run in ui.runs(scheduled) if run["state_type"] == "COMPLETED"]

    wait_for(lambda: len(completed()) >= 2, 600, "two scheduled runs did not complete")
    first, second = completed()[:2]
    states = ui.task_states(first)
    assert states["sft-moe"] == states["merge"] == "Completed"
    again = ui.task_states(second)
    assert again.keys() == states.keys()
    assert {name: state for name, state in again.items() if state != "Cached"} == {"publish": "Completed"}
    assert all(run["auto_scheduled"] for run in ui.runs(scheduled))
    assert not {run["state_type"] for run in ui.runs(scheduled)} & {"FAILED", "CRASHED"}
