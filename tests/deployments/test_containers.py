"""Container files, checked with the tools for their formats: Compose itself for compose.yaml, hadolint for the Dockerfile.

No image is built and nothing is started: that needs a Docker engine.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCKER = Path(__file__).parents[2] / "deployments" / "docker"
SCRIPTS = Path(sys.executable).parent
PASSWORDS = {"POSTGRES_PASSWORD": "secret1", "OBJECTS_PASSWORD": "secret22", "SERVER_PASSWORD": "secret333"}


def compose(*arguments: str, **passwords: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in PASSWORDS} | passwords
    return subprocess.run(
        [SCRIPTS / "docker-compose", "-f", DOCKER / "compose.yaml", *arguments], env=environment, capture_output=True,
        text=True)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return the file as Compose reads it: anchors merged, variables filled in."""
    done = compose("config", "--format", "json", **PASSWORDS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # stderr would show a warning: a variable without a value, or an obsolete element
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_compose_takes_the_file(project: dict[str, Any]) -> None:
    assert project["services"].keys() == {"postgres", "objects", "prefect", "mlflow", "worker"}
    used = {volume["source"] for service in project["services"].values() for volume in service.get("volumes", [])}
    assert used == project["volumes"].keys()


def test_ports_are_on_loopback_only(project: dict[str, Any]) -> None:
    ports = [port for service in project["services"].values() for port in service.get("ports", [])]
    assert {port["target"] for port in ports} == {4200, 5000}
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_both_servers_stand_behind_the_gate_and_the_worker_has_its_secret(project: dict[str, Any]) -> None:
    services = {name: service["environment"] for name, service in project["services"].items()}
    for name, module in (("prefect", "flows.local.prefect_server"), ("mlflow", "tasks.servers.mlflow_server")):
        assert project["services"][name]["command"][:3] == ["python", "-m", module]
        assert services[name]["XFT_SERVER_AUTH_STRING"] == "xft:secret333"
        address = services["worker"]["PREFECT_API_URL" if name == "prefect" else "MLFLOW_TRACKING_URI"]
        assert address.removeprefix("http://").partition("/")[0] in services[name]["XFT_SERVER_ALLOWED_HOSTS"].split(",")
    worker = services["worker"]
    assert worker["PREFECT_API_AUTH_STRING"] == "xft:secret333"
    assert (worker["MLFLOW_TRACKING_USERNAME"], worker["MLFLOW_TRACKING_PASSWORD"]) == ("xft", "secret333")


def test_the_build_finds_its_files(project: dict[str, Any]) -> None:
    build = project["services"]["worker"]["build"]
    context = Path(build["context"])
    assert (context / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
    for line in re.findall(r"^COPY (.+)$", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE):
        *sources, _ = line.split()
        assert [name for name in sources if not (context / name).exists()] == []


def test_without_passwords_it_says_which_one_is_missing() -> None:
    done = compose("config", "--quiet", POSTGRES_PASSWORD="secret1", SERVER_PASSWORD="secret333")
    assert done.returncode != 0
    assert "required variable OBJECTS_PASSWORD is missing a value: set it to a password" in done.stderr


def test_hadolint_takes_the_dockerfile() -> None:
    # DL3008 requires pinned versions of Debian's packages, but its archive drops old versions with every update.
    command = [str(SCRIPTS / "hadolint"), "--no-color", "--ignore", "DL3008", str(DOCKER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
