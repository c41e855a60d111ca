"""A real comparison: variants as flow runs, shared stages run once, MLflow's structure, a failing variant, an interrupt.

The tests run in order and share one store: each uses what the previous ones left.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Failed, Pending, Running

from flows.compare import ComparisonIncomplete, compare, save_report
from flows.variant_runs import Patience, by_recipe, newest_by_variant
from tasks.publishing.comparison import ComparisonResult
from tasks.tracking.client import client
from tasks.variant_tags import VariantOf
from tests.flows.conftest import RECIPE, REPOSITORY
from tests.flows.test_pipeline import stage_processes, wait_for_checkpoint
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe

pytestmark = pytest.mark.usefixtures("prefect_api")
# A seed that no other test uses, so that no stage in the session's store can be reused.
VALUES = RECIPE | {
    "name": "varied", "seed": 3, "data": RECIPE["data"] | {"max_rows": 50}, "sft": RECIPE["sft"] | {"max_steps": 2}}  # type: ignore
GRID = ["merge.method,merge.shared_expert_weight=[[uniform,0.5],[ewa,0.75]]"]
NAMES = {"merge=uniform lambda=0.5", "merge=ewa lambda=0.75"}
STAGES = 12


def run_comparison(grid: list[str], **options: Any) -> Any:
    recipe = parse(Recipe, VALUES)
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields if name != "experiment"}
    return compare(**fields, grid=grid, return_state=True, **options)


def children(result: ComparisonResult) -> dict[str, Any]:
    parent = client().get_run(result.mlflow_run_id)
    found = client().search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'")
    return {run.info.run_name: run for run in found}


def stage_runs(parent_id: str) -> list[Any]:
    experiment = client().get_experiment_by_name("varied-comparison/stages")
    assert experiment is not None
    found: list[Any] = client().search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'")
    return found


@pytest.fixture(scope="module")
def finished(prefect_api: str) -> ComparisonResult:
    state = run_comparison(GRID)
    assert state.is_completed(), state.message
    result: ComparisonResult = state.result()
    return result


def test_mlflow_has_one_run_with_a_child_for_each_variant(finished: ComparisonResult) -> None:
    parent = client().get_run(finished.mlflow_run_id)
    assert client().get_experiment(parent.info.experiment_id).name == "varied-comparison"
    assert (parent.info.run_name, parent.info.status) == ("varied by merge, lambda", "FINISHED")
    assert parent.data.tags["xft.kind"] == "comparison"
    found = children(finished)
    assert found.keys() == NAMES
    one, *others = found.values()
    assert "merged/plus_pass_at_1" in one.data.metrics and "merged/held_out_nll" in one.data.metrics
    for other in others:
        assert other.data.params.keys() == one.data.params.keys()
        assert other.data.metrics.keys() == one.data.metrics.keys()
    assert {float(run.data.params["merge.shared_expert_weight"]) for run in found.values()} == {0.5, 0.75}
    assert not {"merge.method", "merge.shared_expert_weight"} & parent.data.params.keys()
    assert parent.data.params["sft.max_steps"] == "2"
    # Stages are in a neighboring experiment, reachable from the variant.
    kinds = Counter(run.data.tags["xft.kind"] for run in client().search_runs([parent.info.experiment_id]))
    assert kinds == {"comparison": 1, "pipeline": 2}
    stages = {run.info.run_id for run in stage_runs(one.info.run_id)}
    assert len(stages) == STAGES
    assert one.data.tags["xft.sft_moe.run_id"] in stages


def made_by_role(result: ComparisonResult) -> Counter[str]:
    return Counter(
        stage.data.tags["xft.role"] for variant in children(result).values() for stage in stage_runs(variant.info.run_id)
        if stage.data.tags["xft.reused"] == "false")


def test_shared_stages_are_made_once(finished: ComparisonResult) -> None:
    made = made_by_role(finished)
    assert [made[role] for role in ("prepare", "upcycle", "sft_moe", "generate_moe_0")] == [1] * 4
    assert made["generate_base_0"] <= 1  # greedy base answers do not depend on the seed: an earlier test may have them
    assert made["mix"] == made["report"] == 2


def test_the_parent_has_the_best_table_and_report(finished: ComparisonResult) -> None:
    parent = client().get_run(finished.mlflow_run_id)
    found = children(finished)
    best = found[parent.data.tags["xft.best_group"]]
    assert parent.data.metrics["merged/held_out_nll"] == best.data.metrics["merged/held_out_nll"]
    tags = client().get_experiment(parent.info.experiment_id).tags
    saved = [json.loads(value)["name"] for name, value in tags.items() if name.startswith("mlflow.sharedViewState.")]
    assert f"{parent.info.run_name} by merge.method" in saved and parent.info.run_name in saved
    assert "plots%2Foverview.png" in tags["mlflow.note.content"]
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [{"path": "variants.json", "type": "table"}]
    path = client().download_artifacts(finished.mlflow_run_id, "variants.json")
    table = json.loads(Path(path).read_text())
    assert {"variant", "merge.method", "merge.shared_expert_weight", "merged/held_out_nll"} <= set(table["columns"])
    assert len(table["data"]) == 2
    assert "report/plots/overview.png" in {
        item.path for item in client().list_artifacts(finished.mlflow_run_id, "report/plots")}


def test_prefect_shows_variants_under_the_comparison(finished: ComparisonResult) -> None:
    flow_run_id = client().get_run(finished.mlflow_run_id).data.tags["prefect.flow_run_id"]
    with get_client(sync_client=True) as api:
        variants = [run for run in api.read_flow_runs() if f"comparison:{flow_run_id}" in run.tags]
        keys = {item.key for item in api.read_artifacts()}
    assert {run.name for run in variants} == {f"varied {name}" for name in NAMES}
    assert all(run.parent_task_run_id for run in variants)
    assert {"variants", "variants-table", "start-here"} <= keys


def test_the_report_can_be_written_elsewhere(finished: ComparisonResult, tmp_path: Path) -> None:
    text = save_report(finished.report, tmp_path / "new" / "report").read_text(encoding="utf-8")
    assert "| merge=ewa lambda=0.75    |     1 |" in text
    assert "lambda plays no part in merge=ewa lambda=0.75: method ewa does not use it" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "new" / "report" / line.partition("(")[2].rstrip(")")).is_file()
    written = {path.name for path in (tmp_path / "new" / "report").glob("*.json")}
    assert written == {path.name for path in finished.report.glob("*.json")} and written, "the data travels with the report"


def test_the_same_comparison_again_does_no_work(finished: ComparisonResult) -> None:
    result = run_comparison(GRID).result()
    assert (result.reused_stages, result.stages) == (2 * STAGES, 2 * STAGES)
    assert result.report == finished.report


@pytest.mark.slow
def test_a_failed_variant_does_not_lose_the_others(finished: ComparisonResult, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say hello."}\n')
    grid = [f"data.path=['demo:instruct.jsonl','{rows}']"]
    state = run_comparison(grid, overrides=["merge.method=uniform", "merge.shared_expert_weight=0.5"])
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ComparisonIncomplete)
    assert str(error).startswith("1 of 2 variants failed; the others are compared.")
    assert "path=rows.jsonl: prepare: " in str(error)
    assert error.result is not None and error.result.variants == 1
    parent = client().get_run(error.result.mlflow_run_id)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["xft.failed"].startswith("path=rows.jsonl: prepare: ")
    assert "**Missing: `path=rows.jsonl`**" in (error.result.report / "comparison.md").read_text(encoding="utf-8")
    assert {name: run.info.status for name, run in children(error.result).items()} == {
        "path=demo:instruct.jsonl": "FINISHED", "path=rows.jsonl": "FAILED"}


@pytest.mark.slow
def test_seeds_are_grouped_to_mean_and_spread(finished: ComparisonResult) -> None:
    result: ComparisonResult = run_comparison([*GRID, "seed=[3,4]"]).result()
    found = children(result)
    assert found.keys() == {f"{name} seed={seed}" for name in NAMES for seed in (3, 4)}
    assert {run.data.tags["xft.group"] for run in found.values()} == NAMES
    made = made_by_role(result)  # seed 3's stages exist, and data.split_seed, which splits the rows, is the same for both
    assert [made[role] for role in ("prepare", "upcycle", "sft_moe", "mix", "report")] == [0, 1, 1, 2, 2]
    parent = client().get_run(result.mlflow_run_id)
    best = [run.data.metrics["merged/held_out_nll"] for run in found.values()
            if run.data.tags["xft.group"] == parent.data.tags["xft.best_group"]]
    assert parent.data.metrics["merged/held_out_nll"] == pytest.approx(sum(best) / 2)
    assert parent.data.metrics["merged/held_out_nll_spread"] == pytest.approx(abs(best[0] - best[1]) / 2**0.5)


@pytest.mark.slow
def test_an_interrupt_stops_all_variants(finished: ComparisonResult, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    long = VALUES["sft"] | {"max_steps": 1000, "epochs": 1000}  # type: ignore[operator]
    path.write_text(yaml.safe_dump(VALUES | {"name": "stopped", "sft": long}), encoding="utf-8")
    command = [
        sys.executable, "-m", "flows.cli", "compare", str(path), "--grid", "sft.weight_decay=[0.1,0.2,0.3]", "--at-once", "2"]
    with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for_checkpoint(2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=3600)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not stage_processes("sft")
    experiment = client().get_experiment_by_name("stopped-comparison")
    assert experiment is not None
    runs = client().search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert len(runs) <= 3  # the comparison and the variants that were running; none started afterwards


def test_a_grid_is_checked_before_anything_starts(finished: ComparisonResult) -> None:
    state = run_comparison(["upcycle.num_experts=[2,1]"], experiment="never-made")
    assert state.is_failed()
    assert "Variant 'experts=1' cannot be used" in str(state.result(raise_on_failure=False))
    assert client().get_experiment_by_name("never-made") is None


def test_which_run_of_a_variant_is_taken_on_hangs_on_no_order() -> None:
    def run(name: str, minute: int, state: Any) -> FlowRun:
        tags = VariantOf(comparison="c", name=name, group="g").tags()
        created = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
        return FlowRun(flow_id=uuid4(), name=f"{name}{minute}", tags=tags, state=state, created=created)

    runs = [run("a", 1, Completed()), run("a", 2, Running()), run("b", 1, Pending()), run("b", 2, Running()),
            run("c", 1, Failed())]
    for order in permutations(runs):
        assert {name: found.name for name, found in newest_by_variant(list(order)).items()} == {"a": "a1", "b": "b2"}


def test_a_run_of_another_recipe_is_not_taken_on() -> None:
    def run(name: str, **parameters: Any) -> FlowRun:
        tags = VariantOf(comparison="c", name=name, group="g").tags()
        return FlowRun(flow_id=uuid4(), name=name, tags=tags, state=Completed(), parameters=parameters)

    runs = [run("a", sft={"epochs": 1.0}, watch=True), run("b", sft={"epochs": 2.0}), run("b")]
    same, others = by_recipe(runs, {"a": {"sft": {"epochs": 1}}, "b": {"sft": {"epochs": 1}}})
    assert (same, others) == (runs[:1], runs[1:])


def test_patience_is_over_only_when_nothing_moves() -> None:
    now = [0.0]
    patience = Patience(60, clock=lambda: now[0])

    def look(second: float, *states: str) -> bool:
        now[0] = second
        return patience.is_over([f"StateType.{state}" for state in states])

    assert not look(0, "SCHEDULED", "SCHEDULED")
    assert not look(50, "PENDING", "SCHEDULED")
    assert not look(300, "RUNNING", "SCHEDULED")
    assert not look(301, "COMPLETED", "SCHEDULED")
    assert not look(350, "COMPLETED", "SCHEDULED")
    assert look(362, "COMPLETED", "SCHEDULED")
    assert look(400, "COMPLETED", "COMPLETED")  # the variants ran here meanwhile: the next one is taken at once
    assert not look(410, "RUNNING", "SCHEDULED")  # a worker has appeared after all
