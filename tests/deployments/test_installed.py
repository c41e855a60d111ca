"""The package as users install it: a wheel, built from the source distribution, in an environment without a checkout.

The environment contains only the wheel. Its requirements are linked from this environment.
"""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows.local.server_secret import server_auth
from tests.ui.xft_ui import free_ports

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("flows", "tasks", "xft_core", "deployments", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md",
           "constraints.txt", "prefect.yaml")
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({target!r}))"
CUT_DOWN = (
    "data.max_rows=60", "data.held_out_rows=8", "sft.max_steps=2", "merge.max_steps=2", "evaluate.max_problems=2",
    "generate.max_new_tokens=16", "evaluate.sandbox=unsafe")  # a sandbox shows one environment, but this setup has two


def build(kind: str, source: Path, target: Path) -> Path:
    """Build an sdist or a wheel from a source directory."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, target=str(target))], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the source distribution of this checkout."""
    place = tmp_path_factory.mktemp("built")
    checkout = place / "checkout"
    checkout.mkdir()
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(REPOSITORY / name, checkout)
    archive = build("sdist", checkout, place)
    shutil.rmtree(checkout)  # nothing may be read from it any more
    shutil.unpack_archive(archive, place, filter="data")
    return build("wheel", place / archive.name.removesuffix(".tar.gz"), place)


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a separate environment; return the directory of its ``xft``."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    packages = next(place.glob("lib/python*/site-packages"))
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"xft|__editable__|__pycache__", item.name) and not (packages / item.name).exists():
            (packages / item.name).symlink_to(item)
    return python.parent


def xft(scripts: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [scripts / "xft", *arguments], cwd=directory, env=environment(scripts), capture_output=True, text=True)


def environment(scripts: Path) -> dict[str, str]:
    """Return the environment of a new shell: nothing in it leads to the checkout or to another home."""
    ours = re.compile("XFT_|PREFECT_|MLFLOW_|PYTHON|VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not ours.match(name)} | {
        "PATH": f"{scripts}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.mark.slow
def test_the_wheel_has_what_the_packages_have(wheel: Path) -> None:
    """The wheel contains every file below the packages, and nothing else."""
    within = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        str(path.relative_to(REPOSITORY)) for package in ("flows", "tasks", "xft_core", "deployments")
        for path in (REPOSITORY / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    left_out = {name for name in here if name.startswith("deployments/docker/")}
    assert within == here - left_out


@pytest.mark.slow
def test_the_demo_runs_in_an_empty_directory(scripts: Path, tmp_path: Path) -> None:
    done = xft(scripts, tmp_path, "run", "demo", *(word for item in CUT_DOWN for word in ("--set", item)))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "done" in done.stdout
    merged = re.search(r"^  model +(.+)$", done.stdout, re.MULTILINE)
    assert merged is not None and Path(merged[1]).is_relative_to(tmp_path)
    used = subprocess.run(
        [scripts / "python", "-c", "import flows, tasks, xft_core; print(flows.__file__, tasks.__file__, xft_core.__file__)"],
        cwd=tmp_path, env=environment(scripts), capture_output=True, text=True).stdout
    assert str(REPOSITORY) not in used and used.count(str(scripts.parent)) == 3


@pytest.mark.slow
def test_a_name_that_does_not_ship_is_told(scripts: Path, tmp_path: Path) -> None:
    done = xft(scripts, tmp_path, "run", "dmeo")
    assert done.returncode == 2 and "one of" in done.stderr and "demo" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_pages_offer_the_deployments_and_run_one(scripts: Path, tmp_path: Path) -> None:
    ports = free_ports(2)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [scripts / "xft", "ui", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])], cwd=tmp_path,
            env=environment(scripts), stdout=log, stderr=subprocess.STDOUT)
    try:
        said = wait_for_line(process, tmp_path / "log", "Ctrl-C")
        assert f"http://127.0.0.1:{ports[0]}" in said
        secret = server_auth(tmp_path / ".xft")
        by_hand = environment(scripts) | {
            "PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api", "PREFECT_API_AUTH_STRING": secret}
        parameters = {"evaluate": {"benchmarks": [], "held_out_data": ["demo:reserved.jsonl"]}}
        ran = subprocess.run(
            [scripts / "python", "-m", "prefect", "deployment", "run", "evaluate/evaluate", "--watch", "--params",
             json.dumps(parameters)], cwd=tmp_path, env=by_hand, capture_output=True, text=True)
        assert ran.returncode == 0 and "Completed" in ran.stdout, ran.stdout + ran.stderr
        offered = subprocess.run(
            [scripts / "python", "-m", "prefect", "deployment", "ls"], cwd=tmp_path, env=by_hand, capture_output=True,
            text=True)
        assert all(name in offered.stdout for name in ("pipeline/pipeline", "compare/compare", "pipeline/nightly"))
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()


def wait_for_line(process: "subprocess.Popen[bytes]", log: Path, word: str) -> str:
    while process.poll() is None:
        said = log.read_text()
        if word in said:
            return said
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    raise AssertionError(log.read_text())


def test_what_the_metadata_requires_is_what_is_tested() -> None:
    """The pinned releases of constraints.txt are allowed, and packages that are known to break have upper bounds."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = {item.name: item for item in map(Requirement, project["dependencies"])}
    pins = [Requirement(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
            if line and not line.startswith("#")]
    for pin in pins:
        exact = [item.version for item in pin.specifier if item.operator == "=="]
        if pin.name in required and exact:
            assert required[pin.name].specifier.contains(exact[0]), pin
    for item in required.values():
        assert item.specifier.contains(importlib.metadata.version(item.name)), item
    for name in ("prefect", "fastapi", "sqlalchemy", "mlflow", "torch", "transformers"):
        assert any(one.operator in ("<", "==") for one in required[name].specifier), name
