"""The real pipeline with a real Prefect API, real MLflow, and real stages in child processes: killed, resumed, reused, changed.

The tests run in order and share one store: each uses what the previous ones left.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.evaluate import evaluate_model
from flows.pipeline import pipeline
from tasks.execution.finished import finished_run
from tasks.publishing.pipeline import PipelineResult
from tasks.retry import may_pass
from tasks.settings import settings
from tasks.tracking.client import client
from tests.flows.conftest import RECIPE, REPOSITORY
from xft_core.errors import XftError
from xft_core.recipe.load import load_recipe, parse
from xft_core.recipe.sections import ModelConfig, Recipe
from xft_core.store.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("prefect_api")
STAGES = 12  # prepare, upcycle, sft, mix, merge, three times generate and evaluate, report


def run_pipeline(**changes: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Run the flow; return its final state, and every task run's final state by name."""
    values = RECIPE | {name: dict(RECIPE.get(name, {})) | values for name, values in changes.items()}  # type: ignore
    recipe = parse(Recipe, values)
    state = pipeline(**{name: getattr(recipe, name) for name in Recipe.model_fields}, return_state=True)
    return state, task_states(state.state_details.flow_run_id)


def task_states(flow_run_id: Any) -> dict[str, str]:
    """Return the states from the API, as the UI shows them. Task runs are recorded through events, a moment after they end."""
    found: dict[str, str] = {}
    with get_client(sync_client=True) as api:
        for _ in range(50):
            runs = api.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
            found = {item.name: item.state_name or "" for item in runs}
            if not {"Running", "Pending", "Scheduled"} & set(found.values()):
                break
            time.sleep(0.1)
    return found


def rebuilt(states: dict[str, str]) -> set[str]:
    return {name for name, state in states.items() if state != "Cached"} - {"publish"}


def wait_for_checkpoint(number: int, seconds: float = 1800) -> Path:
    """Return SFT's work-in-progress directory once it gets checkpoint ``number`` or a later one. Checkpoints that other tests
    left behind in the same home do not count."""
    started, deadline = time.time(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in (settings().artifacts / "sft").glob("*.partial/checkpoints/checkpoint-*"):
            with contextlib.suppress(FileNotFoundError):  # older checkpoints are deleted meanwhile
                if int(path.name.rpartition("-")[2]) >= number and path.stat().st_mtime >= started:
                    return path.parents[1]
        time.sleep(0.02)
    raise AssertionError("no checkpoint was written")


def stage_processes(name: str) -> list[int]:
    """Return the IDs of this session's child processes that work on a stage."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if b"xft_core" in words and name.encode() in words and f"XFT_HOME={settings().home}\0".encode() in environment:
            found.append(int(path.name))
    return found


def curve_steps(run_id: str, name: str) -> list[int]:
    return [point.step for point in client().get_metric_history(run_id, name)]


def children(parent_id: str) -> dict[str, Any]:
    parent = client().get_run(parent_id)
    found = client().search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    return {item.data.tags["xft.role"]: item for item in found}


@pytest.fixture(scope="module")
def finished(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    """Kill a run's process during SFT and start it again; then kill its training child once, too."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    command = [sys.executable, "-m", "flows.cli", "run", str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_checkpoint(2)
        process.kill()
    deadline = time.monotonic() + 20
    while stage_processes("sft") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not stage_processes("sft"), "the training went on without its parent"

    def kill_child() -> None:
        wait_for_checkpoint(6)
        for pid in stage_processes("sft"):
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_child)
    killer.start()
    state, states = run_pipeline()
    killer.join()
    assert state.is_completed(), state.message
    assert states["upcycle"] == "Cached"  # kept from the killed run
    assert states["sft-moe"] == "Completed"
    result: PipelineResult = state.result()
    return result


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_recorded_truthfully(finished: PipelineResult) -> None:
    parent = client().get_run(finished.mlflow_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "tiny-2x2-xft-learned seed=0 (2)"  # the killed run was the first
    attempts = client().search_runs([parent.info.experiment_id], "tags.`xft.kind` = 'pipeline'")
    assert sorted(item.info.status for item in attempts) == ["FINISHED", "KILLED"]
    killed = next(item.info.run_id for item in attempts if item.info.status == "KILLED")
    assert children(killed)["sft_moe"].info.status == "KILLED"
    assert {item.info.status for item in children(finished.mlflow_run_id).values()} == {"FINISHED"}


def test_the_resumed_curve_is_whole(finished: PipelineResult) -> None:
    sft = children(finished.mlflow_run_id)["sft_moe"]
    names = [name for name in sft.data.metrics if not name.startswith("final/")]
    assert "loss" in names
    steps = curve_steps(sft.info.run_id, "loss")
    assert steps == list(range(1, RECIPE["sft"]["max_steps"] + 1))  # type: ignore[index]
    for name in names:
        found = curve_steps(sft.info.run_id, name)
        assert len(found) == len(set(found)), name


def test_the_parent_compares(finished: PipelineResult) -> None:
    found = client().get_run(finished.mlflow_run_id)
    for model in ("base", "moe", "merged"):
        assert 0 <= found.data.metrics[f"{model}/plus_pass_at_1"] <= 1
    assert found.data.metrics["merged/held_out_nll"] > 0
    assert found.data.params["upcycle.num_experts"] == "2"
    names = {entry.dataset.name for entry in found.inputs.dataset_inputs}
    assert names == {"demo:instruct.jsonl", "demo:instruct.jsonl (held out)", "demo benchmark"}
    models = client().search_logged_models([found.info.experiment_id])
    assert {model.model_type for model in models} == {"base", "moe", "merged"}
    for model in models:
        assert {"held_out_nll", "plus_pass_at_1"} <= {metric.key for metric in model.metrics or []}
    assert curve_steps(finished.mlflow_run_id, "moe/loss") == list(range(1, RECIPE["sft"]["max_steps"] + 1))  # type: ignore[index]
    verdicts = json.loads(Path(client().download_artifacts(finished.mlflow_run_id, "verdicts.json")).read_text())
    assert {row[2] for row in verdicts["data"]} == {"base", "moe", "merged"}
    listed = {item.path for item in client().list_artifacts(finished.mlflow_run_id)}
    assert {"recipe.yaml", "comparison.md", "report", "merged_model", "samples", "verdicts"} <= listed
    shown = {item.path for name in ("report", "data") for item in client().list_artifacts(finished.mlflow_run_id, name)}
    assert {"report/problems.html", "report/comparison.md", "data/decontamination.json"} <= shown
    merged = {item.path for item in client().list_artifacts(finished.mlflow_run_id, "merged_model")}
    assert {"merged_model/config.json", "merged_model/model.safetensors"} <= merged


def test_the_same_recipe_again_does_no_work(finished: PipelineResult) -> None:
    state, states = run_pipeline()
    assert state.is_completed()
    result = state.result()
    assert (result.reused_stages, result.stages) == (STAGES, STAGES)
    assert rebuilt(states) == set()
    again = children(result.mlflow_run_id)
    assert {item.data.tags["xft.reused"] for item in again.values()} == {"true"}
    sft = children(finished.mlflow_run_id)["sft_moe"]
    assert again["sft_moe"].data.tags["xft.made_by_run_id"] == sft.info.run_id
    assert curve_steps(again["sft_moe"].info.run_id, "loss") == curve_steps(sft.info.run_id, "loss")


def test_with_nothing_left_to_do_a_command_starts_no_server(
    finished: PipelineResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command shows the last completed run. A changed recipe or another tracking server has no completed run."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    experiment = client().get_run(finished.mlflow_run_id).info.experiment_id
    before = [item.info.run_id for item in client().search_runs([experiment], "tags.`xft.kind` = 'pipeline'")]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flows.cli", "run", str(recipe)], capture_output=True, text=True,
        cwd=REPOSITORY, env=os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"})  # nothing listens there
    assert done.returncode == 0, done.stderr
    assert f"done ({STAGES} of {STAGES} stages reused)" in done.stdout and str(finished.merged_model) in done.stdout
    assert f"MLflow run {before[0]}" in done.stdout and "--again" in done.stdout
    assert not re.search(r"\| +(prefect|mlflow|torch)$", done.stderr, re.MULTILINE)
    assert before == [item.info.run_id for item in client().search_runs([experiment], "tags.`xft.kind` = 'pipeline'")]
    assert finished_run(load_recipe(recipe, ["seed=1"])) is None
    assert finished_run(load_recipe(recipe, ["merge.shared_expert_weight=0.5"])) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert finished_run(load_recipe(recipe)) is None


def artifacts(flow_run_id: Any) -> dict[str, Any]:
    """Return a flow run's artifacts in Prefect by key: the newest one for each key."""
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    return {str(item.key): item for item in sorted(found, key=lambda item: str(item.created))}


def test_prefect_shows_table_card_and_links(finished: PipelineResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """This also applies to a run that reused all stages. It shows no progress, because no stage ran."""
    monkeypatch.setenv("XFT_MLFLOW_UI_URL", "http://127.0.0.1:5000")
    monkeypatch.delenv("XFT_ONE_ADDRESS", raising=False)  # then each server has its own address
    state, _ = run_pipeline()
    shown = artifacts(state.state_details.flow_run_id)
    rows = json.loads(shown["comparison"].data)
    assert [row["model"] for row in rows] == ["base", "MoE, 2 experts, 2 active", "XFT merged (learned)"]
    for row in rows:
        assert row["held-out NLL"] > 0 and re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", row["demo benchmark+ pass@1 %"])
    for text in (shown["comparison"].description, shown["model-card"].data):
        page = r"\[MLflow\]\(http://127\.0\.0\.1:5000/\S*/models/tiny/versions/1\S*\)"
        assert re.search(rf"Registered in {page} as {state.result().registered}", text)
    assert shown["report"].data.startswith("# tiny: comparison")
    # No pictures and no links to files, because Prefect does not have them.
    assert "report/problems.html" in shown["report"].data and "](" not in shown["report"].data
    run_id = children(state.result().mlflow_run_id)["sft_moe"].info.run_id
    assert re.search(rf"http://127\.0\.0\.1:5000/#/experiments/\d+/runs/{run_id}\b", shown["mlflow-sft-moe"].data)
    assert "mlflow-evaluate-merged-0" in shown
    start = shown["start-here"].data
    assert f"/runs/{state.result().mlflow_run_id}" in start and "max_steps: 12" in start and "took here before" in start
    of_run = [item.key for item in shown.values() if item.task_run_id is None]
    assert of_run == ["start-here", "model-card", "comparison", "report"]  # pages show the newest first
    assert re.match(r"> Registered in .+\n\n# tiny: XFT merged", shown["model-card"].data)  # without YAML in between
    assert not [key for key in shown if key.startswith("progress-")]


def test_stages_at_work_show_their_progress(finished: PipelineResult) -> None:
    parent = client().get_run(finished.mlflow_run_id)
    shown = artifacts(parent.data.tags["prefect.flow_run_id"])
    assert shown["progress-sft-moe"].data == 100
    assert shown["progress-sft-moe"].description == "Done: sft-moe."
    # With one routed expert, mixing has nothing to learn. Upcycling never counts its steps.
    assert not {"progress-mix", "progress-upcycle"} & shown.keys()


def test_the_merged_model_is_registered_once(finished: PipelineResult) -> None:
    state, _ = run_pipeline()
    assert state.result().registered.startswith("tiny version 1, champion")
    version = client().get_model_version("tiny", "1")
    assert version.tags["xft.digest"] == read_manifest(finished.merged_model).digest
    assert version.run_id == finished.mlflow_run_id


@pytest.mark.parametrize("address", ["models:/tiny@champion", "runs:/{run_id}", "runs:/{moe_id}"])
def test_a_model_in_mlflow_is_evaluated_under_the_pipelines_names(finished: PipelineResult, address: str) -> None:
    """It gets the same numbers as in its pipeline, from the existing answers."""
    moe = children(finished.mlflow_run_id)["sft_moe"].info.run_id
    model = "moe" if "moe" in address else "merged"
    address = address.format(run_id=finished.mlflow_run_id, moe_id=moe)
    recipe = parse(Recipe, RECIPE)
    style = {"prompt_style": "magicoder", "base_prompt_style": "magicoder"}
    state = evaluate_model(
        model=ModelConfig(path=address), experiment="addresses", generate=recipe.generate.model_copy(update=style),
        evaluate=recipe.evaluate, return_state=True)
    assert state.is_completed(), state.message
    assert {name: state for name, state in task_states(state.state_details.flow_run_id).items() if state != "Cached"} == {
        "fetch-model": "Completed", "publish": "Completed"}
    experiment = client().get_experiment_by_name("addresses")
    assert experiment is not None
    run, *_ = client().search_runs(
        [experiment.experiment_id], f"tags.`xft.kind` = 'evaluate' and params.`model.path` = '{address}'")
    of_pipeline = client().get_run(finished.mlflow_run_id).data.metrics
    assert run.data.metrics[f"{model}/plus_pass_at_1"] == of_pipeline[f"{model}/plus_pass_at_1"]


@pytest.mark.slow
def test_a_recipe_may_leave_the_registry_alone(finished: PipelineResult) -> None:
    state, states = run_pipeline(registry={"register": "none"})
    assert (state.result().registered, rebuilt(states)) == (None, set())


@pytest.mark.slow
def test_another_lambda_rebuilds_only_what_follows(finished: PipelineResult) -> None:
    state, states = run_pipeline(merge={"shared_expert_weight": 0.5})
    assert state.is_completed()
    assert rebuilt(states) <= {"mix", "merge", "generate-merged-0", "evaluate-merged-0", "report"}
    assert {"mix", "merge", "generate-merged-0", "report"} <= rebuilt(states)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["altered", "gone"])
def test_damage_is_noticed_and_rebuilt(finished: PipelineResult, damage: str) -> None:
    model = finished.merged_model / "model.safetensors"
    before = read_manifest(finished.merged_model).digest
    if damage == "gone":
        model.unlink()
    else:
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        model.unlink()  # MLflow's copy is a link to the same file
        model.write_bytes(content)
    assert finished_run(parse(Recipe, RECIPE)) is None
    state, states = run_pipeline()
    assert state.is_completed()
    assert rebuilt(states) == {"merge"}  # later stages stay valid: the rebuilt model is bit-identical to the old one
    assert read_manifest(finished.merged_model).digest == before


@pytest.mark.slow
def test_a_new_version_of_a_stage_is_rebuilt(
    finished: PipelineResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from xft_core.stages.configs import MergeStage\nMergeStage.version += 1000\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the child; in this process it is set by hand
    monkeypatch.setattr("xft_core.stages.configs.MergeStage.version", read_manifest(finished.merged_model).stage_version + 1000)
    state, states = run_pipeline()
    assert state.is_completed()
    assert rebuilt(states) == {"merge"}
    assert state.result().merged_model != finished.merged_model


@pytest.mark.slow
def test_an_interrupt_stops_training_within_seconds(finished: PipelineResult, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    values = RECIPE | {"seed": 1, "sft": RECIPE["sft"] | {"max_steps": 1000, "epochs": 1000}}  # type: ignore[operator]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "flows.cli", "run", str(path)]
    with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        partial = wait_for_checkpoint(2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert not stage_processes("sft")
    assert list((partial / "checkpoints").iterdir())  # the next start resumes from it
    experiment = client().get_run(finished.mlflow_run_id).info.experiment_id
    parent = client().search_runs(
        [experiment], "tags.`xft.kind` = 'pipeline'", order_by=["attributes.start_time DESC"], max_results=1)[0]
    assert parent.info.status == "KILLED"
    assert children(parent.info.run_id)["sft_moe"].info.status == "KILLED"


@pytest.mark.slow
def test_a_mistake_is_not_retried_and_finished_work_is_kept(
    finished: PipelineResult, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say hello."}\n')
    state, states = run_pipeline(data={"path": str(rows)})
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, XftError)
    assert str(error).startswith("prepare: ")
    assert "stages are finished; the same command continues" in str(error)
    assert states["prepare"] == "Failed"
    assert states["upcycle"] == states["generate-base-0"] == "Cached"
    parents = client().search_runs(
        [client().get_run(finished.mlflow_run_id).info.experiment_id], "tags.`xft.kind` = 'pipeline'",
        order_by=["attributes.start_time DESC"], max_results=1)
    assert parents[0].info.status == "FAILED"
    assert children(parents[0].info.run_id)["prepare"].info.status == "FAILED"
    assert not any("Retry" in message or "AwaitingRetry" in message for message in caplog.messages)
    assert not any(record.exc_info for record in caplog.records if record.name.startswith("prefect."))


def test_a_check_that_says_stop_ends_the_run_also_on_reused_work(finished: PipelineResult) -> None:
    state, states = run_pipeline(checks={"unmoved_coefficients": "stop"})  # the only routed one of two experts has all
    assert "mix: The mixing coefficients barely moved" in str(state.result(raise_on_failure=False))
    assert states["sft-moe"] == "Cached" and states["mix"] == "Failed"
    assert states.get("merge", "NotReady") == "NotReady"  # Prefect does not record every task that never started


def test_a_file_that_is_missing_is_named_before_anything_starts(finished: PipelineResult) -> None:
    state, states = run_pipeline(evaluate={"benchmarks": ["/no/such/benchmark.jsonl"]})
    assert state.is_failed()
    assert "/no/such/benchmark.jsonl" in str(state.result(raise_on_failure=False))
    assert states == {}


def test_what_may_pass() -> None:
    from prefect.client.schemas.objects import TaskRun
    from prefect.states import Failed

    from xft_core.errors import DiskFullError, OutOfMemory, RecipeError, StageInterrupted, StageKilled

    def retried(error: Exception, run_count: int = 1) -> bool:
        run = TaskRun(task_key="sft", dynamic_key="0", run_count=run_count)
        return may_pass(None, run, Failed(data=error))

    assert retried(StageInterrupted("ended"), run_count=3)
    assert retried(StageKilled("killed"), run_count=1)
    assert not retried(StageKilled("killed"), run_count=2)
    assert not retried(OutOfMemory("too small"))
    assert retried(ConnectionResetError())
    assert retried(OSError(5, "input/output error"))
    assert not retried(OSError(28, "no space left"))
    assert not retried(RecipeError("K > N"))
    assert not retried(DiskFullError("full"))
    assert not retried(ValueError("a fault of ours"))
