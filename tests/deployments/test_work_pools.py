"""Base job templates: Prefect's own for the type, with our variables; every placeholder has its variable."""

import json
import re
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from prefect.workers.process import ProcessWorker

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
COLLECTIONS = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"


def default_template(kind: str) -> dict[str, Any]:
    if kind == "process":
        return ProcessWorker.get_default_base_job_template()
    found: dict[str, Any] = json.loads(COLLECTIONS.read_text())[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    return found


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_a_template_is_prefects_own_with_our_variables(kind: str) -> None:
    template = json.loads((DEPLOYMENTS / "work_pools" / f"{kind}.json").read_text())
    default, variables = default_template(kind), template["variables"]["properties"]
    assert template["job_configuration"].keys() == default["job_configuration"].keys()
    assert variables.keys() >= default["variables"]["properties"].keys()
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert placeholders == variables.keys()
    if kind != "process":
        assert variables["env"]["default"].keys() == {"XFT_HOME", "MLFLOW_TRACKING_URI"}


def test_the_compose_file_names_what_it_uses() -> None:
    content = yaml.safe_load((DEPLOYMENTS / "docker" / "compose.yaml").read_text())
    services = content["services"]
    assert services.keys() == {"postgres", "objects", "prefect", "mlflow", "worker"}
    for service in services.values():
        assert service.get("image") or service.get("build")
        assert set(service.get("depends_on", {})) <= services.keys()
        named = {item.partition(":")[0] for item in service.get("volumes", []) if not item.startswith(("/", "."))}
        assert named <= content["volumes"].keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    context = DEPLOYMENTS / "docker" / services["worker"]["build"]["context"]
    assert (context / services["worker"]["build"]["dockerfile"]).is_file()
