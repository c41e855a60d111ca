"""Apply the work pool and deployments of prefect.yaml to this machine's Prefect server. Applying them again changes nothing.

Schedules start paused here: opening the web pages must not start training at night. A schedule that is switched on in the UI
stays on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from flows.local.automations import apply_automations
from flows.shipped import CODE, DEPLOYMENTS
from xft_core.errors import XftError

PREFECT_FILE = DEPLOYMENTS / "prefect.yaml"
POOL_TEMPLATE = DEPLOYMENTS / "work_pools" / "process.json"


def pool_name() -> str:
    """Return the one work pool that all deployments name."""
    names = {item["work_pool"]["name"] for item in _read()["deployments"]}
    if len(names) != 1:
        raise XftError(f"prefect.yaml names several work pools ({', '.join(sorted(names))}), but `xft ui` has one worker.")
    return str(names.pop())


def provision(home: Path) -> None:
    """Create the work pool unless it exists, then apply prefect.yaml to the server that PREFECT_API_URL names.

    Raises XftError, with Prefect's message, if a deployment is refused.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    content = _read()
    with get_client(sync_client=True) as client:
        template = json.loads(POOL_TEMPLATE.read_text(encoding="utf-8"))
        try:
            client.create_work_pool(WorkPoolCreate(name=pool_name(), type="process", base_job_template=template))
        except ObjectAlreadyExists:
            pass  # keep it: its owner may have changed it
        switched_on = {
            (known.name, schedule.slug)
            for known in client.read_deployments() for schedule in known.schedules if schedule.active}
    for deployment in content["deployments"]:
        for schedule in deployment.get("schedules", []):
            schedule["active"] = (deployment["name"], schedule["slug"]) in switched_on
    content.setdefault("pull", [{"prefect.deployments.steps.set_working_directory": {"directory": str(CODE)}}])
    path = home / "prefect.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    _deploy(path)
    _name_limits()
    apply_automations()


def _name_limits() -> None:
    """Name the limits of open runs after their deployments. Prefect names them ``deployment:<id>``, and finds them by id."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            limit = deployment.global_concurrency_limit
            if limit is not None and limit.name.startswith("deployment:"):
                name = f"xft-runs-of-{deployment.name}"
                client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(name=name))


def _read() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(PREFECT_FILE.read_text(encoding="utf-8"))
    return content


def _deploy(path: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    done = subprocess.run(
        command, cwd=CODE, env=dict(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise XftError(f"Prefect refuses the deployments of prefect.yaml:\n{done.stdout.strip()}")
