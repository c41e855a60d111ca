"""The report stage, run like any other stage, on small artifacts that are published like real ones."""

import ast
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xft_core.errors import ArtifactError
from xft_core.recipe.sections import Recipe
from xft_core.reporting.run.evidence import Evidence
from xft_core.stages.configs import ReportStage
from xft_core.stages.run import StageResult, run_stage
from xft_core.store.artifacts import publish, verify
from xft_core.store.workspace import Workspace

PROBLEMS = 40
SOLVED = {"base": 8, "sft": 18, "moe": 22, "merged": 20}
SLOW = pytest.mark.slow
HELD_OUT = {"base": 0.91, "sft": 0.55, "moe": 0.52, "merged": 0.53}


def make_artifact(
    directory: Path, stage: str, metrics: dict[str, Any], files: dict[str, Any] | None = None,
    curve: list[tuple[int, dict[str, float]]] | None = None, lines: dict[str, list[dict[str, Any]]] | None = None,
) -> Path:
    """Publish an artifact with JSON files, JSON lines and a curve. Its times are fixed."""
    workspace = Workspace(directory)
    workspace.prepare()
    for name, content in (files or {"done.json": {"stage": stage}}).items():
        (workspace.output / name).write_text(json.dumps(content), encoding="utf-8")
    for name, rows in (lines or {}).items():
        (workspace.output / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if curve:
        points = [json.dumps({"step": step, "time": 1.0, "metrics": values}) for step, values in curve]
        workspace.metrics_path.write_text("\n".join(points) + "\n", encoding="utf-8")
    publish(workspace, directory, stage=stage, stage_version=1, key=f"{stage}-key", parents={}, config={},
            metrics=metrics, provenance={}, seconds=1.0)
    return directory


def results_of(model: str, solved: int) -> dict[str, Any]:
    """Return verdicts: a better model solves what a worse one does and more; one problem fails only the extended tests."""
    def verdict(index: int) -> dict[str, str]:
        return {"base": "pass" if index <= solved else "fail", "plus": "pass" if index < solved else "fail"}

    return {"problems": [
        {"task_id": f"Demo/{index}", "samples": [verdict(index) | {"solution": "pass"}]} for index in range(PROBLEMS)]}


def make_artifacts(
    root: Path, *, layers: int = 4, experts: int = 4, movement: float = 0.08, uniform: float = 0.54, dead: bool = False,
    moe: dict[str, Any] | None = None,
    without: tuple[str, ...] = (), infrastructure_errors: int = 0, solved: dict[str, int] = SOLVED,
    held_out: dict[str, float] = HELD_OUT,
) -> dict[str, Path]:
    """Create a directory for every role of a run over one benchmark, with plausible numbers."""
    chance = random.Random(0)
    routed = experts - 1

    def shares(total: float, spread: float) -> list[float]:
        raw = [math.exp(chance.gauss(0, spread)) for _ in range(routed)]
        return [total * value / sum(raw) for value in raw]

    def curve(start: float, end: float, steps: int, noise: float = 0.02) -> list[tuple[int, dict[str, float]]]:
        def loss(step: int) -> float:
            return end + (start - end) * math.exp(-5 * step / steps)

        return [
            (step, {"loss": loss(step) + chance.gauss(0, noise)}
             | ({"held_out_nll": loss(step) + 0.03} if step % 100 == 0 else {}))
            for step in range(10, steps + 1, 10)]

    def sft(model: str, before: float) -> dict[str, Any]:
        return {"held_out_nll_before": before, "held_out_nll": held_out[model], "train_loss": 0.6, "steps": 400,
                "tokens": 3_200_000, "tokens_per_second": 8123.4, "peak_memory_mb": 812.0}

    load = [shares(1.0, 0.5) for _ in range(layers)]
    if dead:
        load[0] = [0.001, *[0.999 / (routed - 1)] * (routed - 1)]
    coefficients = [{"weights": [0.75, *shares(0.25, 5 * movement)], "movement": movement} for _ in range(layers)]
    router = [
        {"load": line, "entropy": 0.8 * math.log(routed), "mean_shared_weight": 0.55 + 0.01 * layer}
        for layer, line in enumerate(load)]
    plans: dict[str, dict[str, Any]] = {
        "prepare": {"metrics": {
            "rows_read": 4000, "train_rows": 3712, "held_out_rows": 200, "train_tokens": 412_345,
            "train_response_tokens": 201_234,
            "dropped_contaminated": 12, "dropped_no_room": 3, "dropped_duplicate": 73, "truncated": 9}},
        "sft_baseline": {"metrics": sft("sft", held_out["base"]), "curve": curve(0.95, 0.5, 400)},
        "upcycle": {"metrics": {
            "parameters_dense": 3_412_224, "parameters_total": 8_131_000, "parameters_active": 6_558_000}},
        "sft_moe": {"metrics": sft("moe", held_out["base"]) | (moe or {}), "curve": curve(0.95, 0.46, 400),
                    "files": {"router.json": {"layers": router}}},
        "mix": {"metrics": {"held_out_nll_merged": held_out["merged"], "held_out_nll_uniform": uniform,
                            "movement_max": movement, "movement_mean": movement / 2},
                "files": {"coefficients.json": {"method": "learned", "shared_expert": True, "layers": coefficients}},
                "curve": [(step, {"loss": value["loss"]}) for step, value in curve(uniform - 0.01, 0.51, 100, 0.004)]},
        "merge": {"metrics": {"held_out_nll": held_out["merged"], "parameters": 3_412_224}},
    }
    for model, count in solved.items():
        plans[f"generate_{model}_0"] = {"metrics": {"samples": PROBLEMS, "new_tokens": 4000, "truncated": 1}}
        plus = count / PROBLEMS
        plans[f"evaluate_{model}_0"] = {
            "metrics": {
                "base_pass_at_1": (count + 1) / PROBLEMS, "plus_pass_at_1": plus,
                "problems": PROBLEMS,
                "samples": PROBLEMS, "infrastructure_errors": infrastructure_errors},
            "files": {"results.json": results_of(model, count)}}
    return {
        role: make_artifact(root / role, role.split("_")[0], **plan)
        for role, plan in plans.items() if role not in without}


def report(root: Path, artifacts: dict[str, Path], name: str = "report", **recipe: Any) -> tuple[StageResult, Path]:
    upcycle = {"upcycle": {"num_experts": 4, "num_experts_per_tok": 3}}
    config = ReportStage(output=root / name, artifacts=artifacts, recipe=Recipe.model_validate(upcycle | recipe))
    return run_stage(config), config.output


def comparison_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "comparison.json").read_text(encoding="utf-8"))


def test_everything_is_reported(tmp_path: Path) -> None:
    result, output = report(tmp_path, make_artifacts(tmp_path))
    written = {entry.path for entry in verify(output).files}
    assert written == {"comparison.json", "comparison.md", "README.md", "problems.html", "plots/loss.png",
                       "plots/expert_load.png", "plots/mixing.png", "plots/results.png"}
    metrics = result.manifest.metrics
    assert metrics["merged_plus_pass_at_1"] == 0.5
    assert metrics["sft_plus_pass_at_1"] == 0.45
    assert metrics["base_held_out_nll"] == 0.91
    assert metrics["merged_held_out_nll"] == 0.53
    assert metrics["uniform_held_out_nll"] == 0.54
    assert metrics["merged_over_sft_plus_pass_at_1"] == pytest.approx(0.05)
    assert all(isinstance(value, int | float) for value in metrics.values())
    comparison = comparison_of(output)
    assert [row["name"] for row in comparison["rows"]] == [
        "base", "SFT (dense)", "MoE, 4 experts, 3 active", "XFT merged (learned)"]
    assert [row["parameters_active"] for row in comparison["rows"]] == [3_412_224, 3_412_224, 6_558_000, 3_412_224]
    assert comparison["warnings"] == []


def test_the_table_comes_first_and_says_what_is_better(tmp_path: Path) -> None:
    _, output = report(tmp_path, make_artifacts(tmp_path))
    text = (output / "comparison.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")][:7]
    assert "lower is better" in lines[2] and "nats per response token" in lines[2]
    assert "95% confidence interval" in lines[2]
    assert table[0].split("|")[5].strip() == "XFT merged (learned)"
    assert table[2].startswith("| NLL ↓ ") and table[4].startswith("| demo benchmark+ pass@1 % ↑ ")
    assert table[4].split("|")[5].strip() == "50.0 [35.2, 64.8]"  # Wilson's interval, 20 of 40
    assert len({len(line) for line in table}) == 1
    assert "12" in next(line for line in lines if "contains a problem of a benchmark" in line)


def test_differences_are_paired_over_problems(tmp_path: Path) -> None:
    _, output = report(tmp_path, make_artifacts(tmp_path))
    found = next(
        item for item in comparison_of(output)["differences"]
        if (item["model"], item["against"], item["tests"]) == ("merged", "sft", "plus"))["pair"]
    # Two of forty problems gained, none lost.
    assert (found["better_on"], found["worse_on"]) == (["Demo/18", "Demo/19"], [])
    assert (found["both"], found["neither"], found["problems"]) == (18, 20, 40)
    assert found["difference"] == pytest.approx(0.05)
    assert found["standard_error"] == pytest.approx(math.sqrt(0.05 * 0.95 / 39))
    assert (found["test"], found["p_value"]) == ("McNemar's exact test", 0.5)
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert ("XFT merged (learned) solves 5.0 points more than SFT (dense) (better on 2 problems, worse on 0; McNemar's "
            "exact test, p = 0.50): no difference can be claimed.") in text
    assert "only XFT merged (learned) solves Demo/18, Demo/19." in text
    assert "[problems.html](problems.html)" in text


@pytest.mark.parametrize(("solved", "expected"), [
    ({"base": 8, "sft": 10, "moe": 20, "merged": 20}, "p = 0.002): more than the choice of problems explains"),
    *(pytest.param(*both, marks=SLOW) for both in (
        ({"base": 8, "sft": 20, "moe": 20, "merged": 20}, "solve the same problems"),
        ({"base": 8, "sft": 19, "moe": 20, "merged": 20}, "p = 1.00): no difference can be claimed"),
        ({"base": 8, "sft": 15, "moe": 20, "merged": 20}, "p = 0.062): only a hint"))),
])
def test_certainty_is_said_in_words(tmp_path: Path, solved: dict[str, int], expected: str) -> None:
    _, output = report(tmp_path, make_artifacts(tmp_path, solved=solved))
    text = (output / "comparison.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if "benchmark+: XFT merged (learned)" in line and "SFT" in line)
    assert expected in line


@pytest.mark.parametrize(("change", "expected"), [
    ({"uniform": 0.529}, "Learned mixing is worse than uniform mixing"),
    ({"movement": 0.002}, "barely moved"),
    pytest.param({"dead": True}, "1 routed expert with a load under 1% on held-out rows: layer 0 expert 1.", marks=SLOW),
    pytest.param({"moe": {"diverged_at_step": 70}}, "the MoE: The training loss diverged: at step 70", marks=SLOW),
    pytest.param({"moe": {"dead_expert_steps": 100}}, "less than 1% of the tokens for 100 consecutive steps", marks=SLOW),
    pytest.param({"infrastructure_errors": 2}, "2 answers could not be graded", marks=SLOW),
    pytest.param({"solved": dict.fromkeys(SOLVED, 0)}, "demo benchmark is too hard to tell these models apart.", marks=SLOW),
    pytest.param({"solved": dict.fromkeys(SOLVED, 39)}, "demo benchmark is too easy to tell these models apart.", marks=SLOW),
    pytest.param({"held_out": HELD_OUT | {"merged": 0.95}}, "XFT merged (learned) is worse than the base model", marks=SLOW),
])
def test_warnings(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    _, output = report(tmp_path, make_artifacts(tmp_path, **change))
    assert any(expected in warning for warning in comparison_of(output)["warnings"])
    for name in ("comparison.md", "README.md"):
        assert expected in (output / name).read_text(encoding="utf-8")


@SLOW
def test_preferences_that_were_not_there_are_said_in_words(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path, solved=SOLVED | {"dpo": SOLVED["merged"]})
    artifacts["dpo"] = make_artifact(tmp_path / "dpo", "dpo", {
        "pairs": 0, "steps": 0, "problems_with_pairs": 0, "problems_without_pairs": 9, "answers_passing": 0,
        "answers_failing": 31, "held_out_nll_before": 0.53, "held_out_nll": 0.53, "parameters": 3_412_224})
    _, output = report(tmp_path, artifacts, dpo={"benchmark": "own.jsonl"})
    for name in ("comparison.md", "README.md"):
        text = (output / name).read_text(encoding="utf-8")
        assert "none of the 9 problems of dpo.benchmark has both" in text and "(0 different answers passed, 31 failed)" in text
        assert "merged, DPO without pairs" in text


def test_same_artifacts_give_the_same_bytes(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path)
    first, _ = report(tmp_path, artifacts, name="first")
    second, _ = report(tmp_path, artifacts, name="second")
    assert first.manifest.digest == second.manifest.digest
    assert not second.reused


@pytest.mark.slow
def test_without_a_baseline_the_untouched_moe_gives_the_base_loss(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path, without=("sft_baseline", "generate_sft_0", "evaluate_sft_0"))
    result, output = report(tmp_path, artifacts)
    assert [row["model"] for row in comparison_of(output)["rows"]] == ["base", "moe", "merged"]
    assert result.manifest.metrics["base_held_out_nll"] == 0.91
    result, _ = report(tmp_path, artifacts, name="none", upcycle={"normalization": "none"})
    assert "base_held_out_nll" not in result.manifest.metrics


def test_only_what_is_there_is_reported(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path)
    few = {role: artifacts[role] for role in ("prepare", "sft_baseline")}
    _, output = report(tmp_path, few)
    assert {row["model"] for row in comparison_of(output)["rows"]} == {"base", "sft"}
    assert {path.name for path in (output / "plots").iterdir()} == {"loss.png", "results.png"}


@pytest.mark.slow
def test_several_benchmarks_have_their_own_columns_and_metrics(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path)
    artifacts |= {role.replace("_0", "_1"): path for role, path in artifacts.items() if role.endswith("_0")}
    benchmarks = ["humaneval", "/somewhere/mbpp_small.jsonl.gz"]
    result, output = report(tmp_path, artifacts, evaluate={"benchmarks": benchmarks})
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert "HumanEval+ pass@1 % ↑" in text and "mbpp_small pass@1 % ↑" in text and "/somewhere" not in text
    assert "HumanEval+: XFT merged" in text and "mbpp_small+: XFT merged" in text
    widest = max(len(line) for line in text.splitlines() if line.startswith("|"))
    assert widest <= 128
    assert result.manifest.metrics["merged_plus_pass_at_1_mbpp_small"] == 0.5


@pytest.mark.slow
def test_groups_of_problems_and_other_measures_are_shown(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path)
    for model, solved in SOLVED.items():
        results = results_of(model, solved)
        for index, problem in enumerate(results["problems"]):
            problem["groups"] = {"library": "Pandas" if index < 10 else "Numpy", "perturbation": "Origin"}
        artifacts[f"evaluate_{model}_0"] = make_artifact(
            tmp_path / f"grouped_{model}", "evaluate",
            {"base_pass_at_1": 0.5, "plus_pass_at_1": solved / PROBLEMS, "problems": PROBLEMS, "samples": PROBLEMS},
            {"results.json": results | {"benchmark": {"extended_tests": False}}})
        artifacts[f"nll_{model}_0"] = make_artifact(
            tmp_path / f"nll_{model}", "nll", {"nll": HELD_OUT[model], "nll_standard_error": 0.0125})
        task = {"metrics": {"acc": 0.25, "acc_standard_error": 0.05}, "higher_is_better": {"acc": True}}
        artifacts[f"lm_eval_{model}_0"] = make_artifact(
            tmp_path / f"lm_eval_{model}", "lm_eval", {"acc": 0.25}, {"results.json": {"tasks": {"mmlu": task}}})
    result, output = report(
        tmp_path, artifacts, evaluate={"held_out_data": ["some/other.jsonl"], "lm_eval_tasks": ["mmlu"]})
    text = (output / "comparison.md").read_text()
    by_library = text.split("by library")[1].split("##")[0]
    assert [line.split("|")[1].strip() for line in by_library.splitlines() if line.startswith("| ")][2:] == [
        "Numpy (30)", "Pandas (10)"]
    assert "80.0 [" in by_library and "by perturbation" in text  # the base model solves 8 of the first 10
    assert "| NLL on other.jsonl ↓" in text and "0.5300 [0.5055, 0.5545]" in text
    assert "| mmlu acc ↑" in text and "0.2500 [0.1520, 0.3480]" in text
    metrics = result.manifest.metrics
    assert metrics["base_pass_at_1/pandas"] == 0.8 and metrics["merged_pass_at_1/numpy"] == pytest.approx(1 / 3)
    assert metrics["merged_nll_on_other_jsonl"] == 0.53
    assert metrics["merged_nll_on_other_jsonl_low"] == pytest.approx(0.5055, abs=1e-4)
    assert metrics["sft_mmlu_acc"] == 0.25


NAMES = ["d2/h.jsonl", "d3/h.jsonl", "数据.jsonl", "测试.jsonl", "a+b.jsonl", "a_b.jsonl", "x.jsonl",
         "d2/x.jsonl", "d2/x.jsonl"]


@pytest.mark.slow
def test_every_file_and_benchmark_has_a_row_and_a_metric_whatever_it_is_called(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path)
    benchmarks = [*NAMES, "mbpp", "elsewhere/MbppPlus-v0.2.0.jsonl", "mbpp+.jsonl", "my-bench.jsonl", "my bench.jsonl",
                  "++.jsonl"]
    artifacts |= {f"evaluate_merged_{index}": artifacts["evaluate_merged_0"] for index in range(len(benchmarks))}
    for index in range(len(NAMES)):
        artifacts[f"nll_merged_{index}"] = make_artifact(tmp_path / f"nll{index}", "nll", {"nll": 1.0 + index})
    tasks = {part: {"metrics": {"acc": 0.5}, "higher_is_better": {"acc": True}} for part in ("first", "second")}
    for index, found in enumerate((tasks, {"first": tasks["first"]})):
        artifacts[f"lm_eval_merged_{index}"] = make_artifact(
            tmp_path / f"task{index}", "lm_eval", {}, {"results.json": {"tasks": found}})
    result, output = report(tmp_path, artifacts, evaluate={
        "benchmarks": benchmarks, "held_out_data": NAMES, "lm_eval_tasks": ["group", "first"]})
    lines = (output / "comparison.md").read_text(encoding="utf-8").splitlines()
    labels = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    rows = labels[2:labels.index("parameters")]
    assert len(rows) == len(set(rows)) == 1 + 2 * len(benchmarks) + len(NAMES) + 3
    assert {"NLL on d2/h.jsonl ↓", "NLL on 数据.jsonl ↓", "d3/h pass@1 % ↑", "first/first acc ↑", "second acc ↑"} <= set(rows)
    metrics = result.manifest.metrics
    assert sorted(value for name, value in metrics.items() if "nll_on" in name) == [1.0 + index for index in range(len(NAMES))]
    assert len([name for name in metrics if name.startswith("merged_plus_pass_at_1")]) == len(benchmarks)
    assert len([name for name in metrics if name.endswith("_acc") or "_acc_" in name]) == 3
    assert metrics["merged_nll_on_数据_jsonl"] == 3.0 and metrics["merged_nll_on_d2_h_jsonl"] == 1.0
    assert all(re.fullmatch(r"[/\w.\- :]{1,250}", name) for name in metrics)  # as MLflow accepts them
    page = (output / "problems.html").read_text(encoding="utf-8")
    assert len(json.loads(page.split('id="data">')[1].split("</script>")[0])["benchmarks"]) == len(benchmarks)


@pytest.mark.slow
def test_an_answer_without_a_verdict_stands_beside_the_number(tmp_path: Path) -> None:
    result, output = report(tmp_path, make_artifacts(tmp_path, infrastructure_errors=2))
    for name in ("comparison.md", "README.md"):
        assert "| 50.0 [35.2, 64.8] (2 not graded) |" in (output / name).read_text(encoding="utf-8")
    assert result.manifest.metrics["merged_infrastructure_errors"] == 2


@pytest.mark.slow
def test_rows_of_the_data_add_up(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path, without=("prepare",))
    counts = {"rows_read": 2200, "dropped_contaminated": 126, "dropped_by_a_later_version": 4, "train_rows": 1500,
              "held_out_rows": 200, "train_tokens": 9}
    artifacts["prepare"] = make_artifact(tmp_path / "prepare", "prepare", counts)

    def table(name: str, **data: Any) -> list[list[str]]:
        _, output = report(tmp_path, artifacts, name, data=data)
        section = (output / "comparison.md").read_text().split("## Data")[1].split("\n\n")[1]
        return [[cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines()[2:]]

    rows = table("limited", max_rows=1700)
    assert ["not used: more than data.max_rows (1,700)", "370"] in rows and ["dropped: by a later version", "4"] in rows
    parts = [int(count.replace(",", "")) for what, count in rows[1:rows.index(["together, the rows read", "2,200"])]]
    assert sum(parts) == 2200
    assert ["not accounted for", "370"] in table("all")


def test_card_and_report_show_the_curves_and_all_that_was_chosen(tmp_path: Path) -> None:
    _, output = report(tmp_path, make_artifacts(tmp_path), evaluate={
        "benchmarks": ["/home/someone/humaneval.jsonl"], "held_out_data": ["/home/someone/h.jsonl"],
        "lm_eval_directory": "/home/someone/tasks"}, generate={"temperature": 0.7})
    for name in ("comparison.md", "README.md"):
        text = (output / name).read_text(encoding="utf-8")
        shown = re.findall(r"\(plots/(\w+\.png)\)", text)
        assert "loss.png" in shown and all((output / "plots" / plot).is_file() for plot in shown)
    card = (output / "README.md").read_text(encoding="utf-8")
    choices = [line.split("`")[1] for line in card.splitlines() if line.startswith("| `")]
    wanted = {"generate.temperature", "evaluate.min_time_limit", "evaluate.held_out_data", "baseline.enabled", "sft.epochs"}
    assert wanted <= set(choices)
    assert "someone" not in card


@pytest.mark.slow
def test_equal_and_nearly_equal_losses_are_told_apart(tmp_path: Path) -> None:
    held_out = {"base": 0.9, "sft": 0.5, "moe": 0.500001, "merged": 0.5}
    _, output = report(tmp_path, make_artifacts(tmp_path, held_out=held_out))
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert "the same as SFT (dense), 1e-06 lower than the MoE and 0.4000 lower than the base model" in text


@pytest.mark.slow
def test_other_k_and_benchmarks_without_extended_tests(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path)
    for model, solved in SOLVED.items():
        # Two samples per problem: the second fails where the first passes, so that pass@2 is 1 for every problem.
        problems = [
            {"task_id": f"js/{index}", "samples": [
                {"base": status, "plus": status, "solution": "-"} for status in (("pass", "fail") if index < solved else
                                                                                ("fail", "pass"))]}
            for index in range(PROBLEMS)]
        artifacts[f"evaluate_{model}_1"] = make_artifact(
            tmp_path / f"js_{model}", "evaluate",
            {f"{tests}_pass_at_{k}": value for tests in ("base", "plus") for k, value in ((1, 0.5), (2, 1.0))}
            | {"problems": PROBLEMS, "samples": 2 * PROBLEMS, "infrastructure_errors": 0},
            {"results.json": {"benchmark": {"extended_tests": False}, "problems": problems}})
    result, output = report(tmp_path, artifacts, evaluate={"benchmarks": ["humaneval", "data/humaneval-js.jsonl"]})
    rows = [line for line in (output / "comparison.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    labels = [row.split("|")[1].strip() for row in rows[:8]]
    assert labels == ["", "-" * len(labels[1]), "NLL ↓", "HumanEval pass@1 % ↑", "HumanEval+ pass@1 % ↑",
                      "humaneval-js pass@1 % ↑", "humaneval-js pass@2 % ↑", "parameters"]
    # Every problem's rate is one half, so the answers are counted one by one, 80 of them.
    assert rows[5].split("|")[5].strip() == "50.0 [39.3, 60.7]"
    assert rows[6].split("|")[5].strip() == "100.0 [91.2, 100.0]"
    assert result.manifest.metrics["merged_plus_pass_at_2_humaneval_js"] == 1.0
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "humaneval-js+" not in card and "paired randomisation test" in (output / "comparison.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [True, False])
def test_what_was_dropped_as_contaminated_is_shown(tmp_path: Path, dropped: bool) -> None:
    artifacts = make_artifacts(tmp_path, without=("prepare",))
    item = {"task_id": "HumanEval/2", "benchmark": "he.jsonl", "kind": "n_gram", "excerpt": "thirteen `words`\n# or so",
            "row": ["Write <b>it</b>", "def f(): " + "x" * 900]}
    artifacts["prepare"] = make_artifact(tmp_path / "prepare", "prepare", {"rows_read": 90}, {"decontamination.json": {
        "benchmarks": ["he.jsonl", "mbpp.jsonl"], "rows_checked": 88, "dropped": [item] if dropped else []}})
    _, output = report(tmp_path, artifacts)
    section = (output / "comparison.md").read_text(encoding="utf-8").split("## Decontamination")[1]
    assert "88 rows were searched for the problems of he.jsonl, mbpp.jsonl" in section
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"problems of he.jsonl, mbpp.jsonl; of 88 rows, {int(dropped)} contained one and were dropped." in card
    if not dropped:
        assert "None had to be dropped." in section
        return
    assert "HumanEval/2 (n-gram): `thirteen 'words' # or so`" in section and "x" * 200 not in section
    assert [line.split()[1:8:2] for line in section.splitlines() if line.startswith("| he.jsonl")] == [
        ["he.jsonl", "0", "1", "1"]]
    assert comparison_of(output)["decontamination"]["dropped"][0]["row"].startswith("Write <b>it</b>\ndef f()")


@pytest.mark.slow
def test_data_that_was_not_searched_is_warned_of(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path, without=("prepare",))
    artifacts["prepare"] = make_artifact(tmp_path / "prepare", "prepare", {"rows_read": 90}, {"decontamination.json": {
        "benchmarks": [], "rows_checked": 88, "dropped": []}})
    _, output = report(tmp_path, artifacts)
    assert any("data.decontaminate is off" in warning for warning in comparison_of(output)["warnings"])
    assert "data.decontaminate is off" in (output / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_model_card_is_one_for_the_hub(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    _, output = report(
        tmp_path, make_artifacts(tmp_path), model={"path": "deepseek-ai/deepseek-coder-1.3b-base"},
        data={"path": "/home/someone/rows.jsonl"})
    text = (output / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "deepseek-ai/deepseek-coder-1.3b-base"
    assert {metric["value"] for metric in data["model-index"][0]["results"][0]["metrics"]} == {0.5, 0.525}
    assert "AutoModelForCausalLM" in text and "lambda = 0.75" in text and "`merge-key`" in text
    assert "/home/someone" not in text


def test_model_card_is_this_text(tmp_path: Path) -> None:
    _, output = report(tmp_path, make_artifacts(tmp_path))
    card = re.sub(r" Made with .*", " Made with VERSIONS.", (output / "README.md").read_text(encoding="utf-8"))
    assert card == (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_model_card_example_has_the_prompt_of_the_training(tmp_path: Path) -> None:
    from xft_core.data.templates import magicoder_prompt

    artifacts = make_artifacts(tmp_path, without=("sft_moe", "mix"))
    for template in ("magicoder", "chat"):
        _, output = report(tmp_path, artifacts, name=template, data={"template": template})
        text = (output / "README.md").read_text(encoding="utf-8")
        code = text.split("```python\n")[1].split("```")[0]
        ast.parse(code)
        assert (magicoder_prompt("Write a Python function").split("\n")[0] in code) == (template == "magicoder")
        assert ("apply_chat_template" in code) == (template == "chat")


@pytest.mark.slow
def test_answers_that_were_not_graded_count_for_nothing(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path, without=("evaluate_merged_0",))
    results = results_of("merged", SOLVED["merged"])
    results["problems"][0]["samples"][0] |= {"base": "infrastructure_error", "plus": "infrastructure_error"}
    artifacts["evaluate_merged_0"] = make_artifact(
        tmp_path / "evaluate_merged_0", "evaluate", {
            "base_pass_at_1": 20 / 39, "plus_pass_at_1": 19 / 39, "problems": PROBLEMS,
            "samples": PROBLEMS, "infrastructure_errors": 1}, {"results.json": results})
    _, output = report(tmp_path, artifacts)
    found = comparison_of(output)["differences"][0]
    assert (found["model"], found["against"]) == ("merged", "sft")
    assert (len(found["pair"]["better_on"]), len(found["pair"]["worse_on"]), found["pair"]["problems"]) == (2, 0, 39)
    assert found["pair"]["difference"] == pytest.approx(2 / 39)


def test_no_shared_expert(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path, without=("mix", "sft_moe"))
    layer = {"weights": [0.1, 0.2, 0.3, 0.4], "movement": 0.15}
    artifacts["mix"] = make_artifact(
        tmp_path / "mix", "mix", {"held_out_nll_merged": 0.53, "movement_max": 0.15},
        {"coefficients.json": {"method": "learned", "shared_expert": False, "layers": [layer, layer]}})
    routing = {"load": [0.5, 0.5, 0.5, 0.5], "entropy": 1.2, "mean_shared_weight": None}
    artifacts["sft_moe"] = make_artifact(
        tmp_path / "sft_moe", "sft", {"held_out_nll": 0.52, "held_out_nll_before": 0.91, "steps": 10},
        {"router.json": {"layers": [routing, routing]}})
    upcycle = {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert": False}
    _, output = report(tmp_path, artifacts, upcycle=upcycle)
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert "40.0 (expert 3)" in text and "| merged (learned)" in text
    assert "No expert is always on" in (output / "README.md").read_text(encoding="utf-8")
    assert (output / "plots/mixing.png").is_file()


@pytest.mark.slow
def test_the_shared_experts_weight_by_class_of_token(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path, without=("sft_moe",))
    routing = {"load": [0.3, 0.3, 0.4], "entropy": 1.0, "mean_shared_weight": 0.6}
    classes = [{"name": "keyword", "tokens": 1200, "mean": [0.5, 0.7], "spread": [0.1, 0.2]},
               {"name": "prose", "tokens": 30, "mean": [0.8, 0.6], "spread": [0.0, 0.1]}]
    artifacts["sft_moe"] = make_artifact(
        tmp_path / "sft_moe", "sft", {"held_out_nll": 0.52, "held_out_nll_before": 0.91, "steps": 10},
        {"router.json": {"layers": [routing, routing], "token_classes": classes}})
    _, output = report(tmp_path, artifacts)
    text = (output / "comparison.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| keyword"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "keyword", "1,200", "60.0", "15.0", "50.0 (layer 0)", "70.0 (layer 1)"]
    assert comparison_of(output)["token_classes"] == classes and (output / "plots/token_classes.png").is_file()


def test_a_directory_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        Evidence.read(Recipe(), {"merge": tmp_path / "nothing"})


def test_no_torch_is_loaded() -> None:
    code = ("import sys; import xft_core.stages.report; "
            "print([name for name in ('torch', 'mlflow', 'prefect', 'matplotlib.pyplot') if name in sys.modules])")
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(loaded) == []
