"""The command line as a user sees it: messages, exit statuses, and no stack traces."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.local.addresses import running_mlflow
from flows.local.server_secret import server_auth
from tests.flows.conftest import REPOSITORY
from tests.flows.local.strangers import EXPECTED, answers

RecipeFile = Callable[..., Path]


def xft(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XFT_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], env=environment, cwd=home, capture_output=True, text=True)


@pytest.mark.parametrize(("override", "message"), [
    ("upcycle.num_expert=4", "did you mean 'num_experts'?"),
    ("upcycle.num_experts_per_tok=9", "more than num_experts"),
    ("sft.batch_size=many", "sft.batch_size"),
    ("nonsense", "section.field=value"),
    ("data.path=/no/such/rows.jsonl", "/no/such/rows.jsonl"),
    pytest.param("model.path=/no/such/model", "/no/such/model", marks=pytest.mark.slow),
    pytest.param("evaluate.benchmarks=[/no/such.jsonl]", "/no/such.jsonl", marks=pytest.mark.slow),
    ("generate.backend=vllm", "Set generate.backend: transformers"),
])
def test_a_bad_recipe_is_told_at_once(recipe_file: RecipeFile, tmp_path: Path, override: str, message: str) -> None:
    done = xft("run", str(recipe_file()), "--set", override, home=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()  # nothing was started


@pytest.mark.parametrize(("grid", "message"), [
    ("upcycle.num_expert=[4]", "did you mean 'upcycle.num_experts'?"),
    ("upcycle.num_experts=[2,1]", "Variant 'experts=1' cannot be used"),
    ("seed=3", "for example seed=[3]"),
    pytest.param("model.path=['demo:model',/no/such/model]", "/no/such/model", marks=pytest.mark.slow)])
def test_a_bad_grid_is_told_at_once(recipe_file: RecipeFile, tmp_path: Path, grid: str, message: str) -> None:
    done = xft("compare", str(recipe_file()), "--grid", grid, home=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    done = xft("run", "none.yaml", home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "There is no file 'none.yaml'" in done.stderr


@pytest.mark.slow
def test_a_failing_stage_is_one_clear_message(recipe_file: RecipeFile, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    path = recipe_file(data={"path": str(rows)}, evaluate={"max_problems": 1, "sandbox": "unsafe"})
    done = xft("run", str(path), home=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "error: prepare: " in done.stderr
    assert str(rows) in done.stderr
    assert "Warning" not in done.stderr + done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_ui_serves_both_and_stops_cleanly(tmp_path: Path) -> None:
    prefect_port, mlflow_port = free_port(), free_port()
    environment = os.environ | {"XFT_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "ui", "--prefect-port", str(prefect_port), "--mlflow-port",
         str(mlflow_port)], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        text = ""
        while "Ctrl-C" not in text:
            line = process.stdout.readline()
            assert line, text
            text += line
        assert f"http://127.0.0.1:{prefect_port}" in text
        assert running_mlflow(tmp_path) == f"http://127.0.0.1:{mlflow_port}"  # other commands on this machine link to it
        for port in (prefect_port, mlflow_port):
            opened = urllib.request.Request(f"http://127.0.0.1:{port}", headers={"Accept": "text/html"})
            with urllib.request.urlopen(opened, timeout=10) as page:
                assert b"<html" in page.read().lower()
                assert "SameSite=Strict" in page.headers["Set-Cookie"]  # the page uses this cookie for its requests
        basic = "Basic " + base64.b64encode(server_auth(tmp_path).encode()).decode()
        settings = urllib.request.Request(f"http://127.0.0.1:{prefect_port}/ui-settings", headers={"Authorization": basic})
        with urllib.request.urlopen(settings, timeout=10) as answer:
            shown = json.load(answer)
        assert (shown["api_url"], shown["default_ui"], shown["auth"]) == ("/api", "v1", None)
        prefect, mlflow = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}/api/2.0/mlflow"
        assert answers(f"{prefect}/deployments/filter", basic) == EXPECTED
        assert answers(f"{mlflow}/experiments/search", basic, {"max_results": 1}) == EXPECTED
        by_hand = environment | {"PREFECT_API_URL": prefect, "PREFECT_API_AUTH_STRING": server_auth(tmp_path)}
        listed = subprocess.run(
            [sys.executable, "-m", "prefect", "deployment", "ls"], env=by_hand, capture_output=True, text=True)
        assert "pipeline/nightly" in listed.stdout, listed.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stdout.close()
    for port in (prefect_port, mlflow_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["demo:model"], "nothing to measure"),
    pytest.param(["/no/such/model", "--benchmark", "demo:benchmark.jsonl"], "/no/such/model", marks=pytest.mark.slow),
    pytest.param(["demo:model", "--benchmark", "/no/such.jsonl"], "/no/such.jsonl", marks=pytest.mark.slow),
    (["demo:model", "--held-out", "demo:reserved.jsonl", "--set", "generate.max_new_token=4"], "did you mean"),
])
def test_an_evaluation_that_cannot_be_made_is_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = xft("evaluate", *arguments, home=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()  # nothing was started


@pytest.mark.slow
def test_any_model_is_measured_from_the_command_line(tmp_path: Path) -> None:
    done = xft("evaluate", "demo:model", "--held-out", "demo:reserved.jsonl", "--set", "generate.precision=fp32", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| NLL on reserved.jsonl " in done.stdout and "done" in done.stdout
    assert "xft 0." in xft("--version", home=tmp_path).stdout
