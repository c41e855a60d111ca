"""Base job templates: Prefect's own for the type, with our variables. Prefect's server accepts them, and they are filled in as
a worker would."""

import json
import re
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.utilities.schema_tools import is_valid_schema, validate
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

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


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_prefect_takes_it_and_fills_it_in(kind: str) -> None:
    template = json.loads((DEPLOYMENTS / "work_pools" / f"{kind}.json").read_text())
    WorkPoolCreate(name="xft", type=kind, base_job_template=template)
    is_valid_schema(template["variables"])  # raises if it is not
    defaults = {
        name: field["default"] for name, field in template["variables"]["properties"].items()
        if field.get("default") is not None}
    assert not validate(defaults, template["variables"])
    job = apply_values(template["job_configuration"], defaults)
    assert not find_placeholders(job)
    if kind == "process":
        ProcessJobConfiguration.model_validate(job)
    if kind == "kubernetes":
        pod = job["job_manifest"]["spec"]["template"]["spec"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "xft"
        assert pod["containers"][0]["image"] == "xft-pipeline:latest"
