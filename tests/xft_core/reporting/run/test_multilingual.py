"""MultiPL-E in a report: a line for each language, averages that omit skipped languages, and the paper's six separately."""

from pathlib import Path
from typing import Any

import pytest

from tests.xft_core.stages.test_report import comparison_of, make_artifact, make_artifacts, report
from xft_core.reporting.names import benchmark_title
from xft_core.reporting.run.multilingual import averages

LANGUAGES = ("js", "cpp", "lua", "go", "php")
# Problems, and the numbers that base, sft, moe and merged solve. php is skipped.
MEASURED = {"js": (4, 0, 1, 2, 3), "cpp": (6, 0, 1, 1, 3), "lua": (10, 1, 4, 5, 8), "go": (2, 0, 0, 1, 1)}
REASON = "no toolchain for php: no php (install: Debian packages php-cli)"


def artifacts(root: Path) -> dict[str, Path]:
    found = make_artifacts(root, solved={})
    for index, language in enumerate(LANGUAGES):
        for place, model in enumerate(("base", "sft", "moe", "merged")):
            found[f"evaluate_{model}_{index}"] = make_artifact(
                root / f"evaluate_{model}_{index}", "evaluate", *evaluation(language, place))
    return found


def evaluation(language: str, place: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Create the metrics and results.json of one model in one language."""
    described = {"kind": "MultiPL-E", "language": language, "extended_tests": False}
    if language not in MEASURED:
        return {"skipped": 1, "problems": 5, "samples": 5}, {
            "results.json": {"benchmark": described, "skipped": REASON, "problems": []}}
    problems, *solved = MEASURED[language]
    rate = solved[place] / problems
    metrics = {"base_pass_at_1": rate, "plus_pass_at_1": rate, "problems": problems,
               "samples": problems, "infrastructure_errors": 0}
    verdicts = ["pass"] * solved[place] + ["fail"] * (problems - solved[place])
    return metrics, {"results.json": {"benchmark": described, "problems": [
        {"task_id": f"HumanEval_{number}", "samples": [{"base": verdict, "plus": verdict, "solution": "-"}]}
        for number, verdict in enumerate(verdicts)]}}


def test_languages_and_averages_are_named_apart(tmp_path: Path) -> None:
    benchmarks = [f"multipl-e/{language}" for language in LANGUAGES]
    result, output = report(tmp_path, artifacts(tmp_path), evaluate={"benchmarks": benchmarks})
    text = (output / "comparison.md").read_text(encoding="utf-8")
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
            for line in text.splitlines() if len(cells := line.split("|")) == 7}
    assert [name for name in rows if name.startswith("MultiPL-E")][:7] == [
        "MultiPL-E js pass@1 % ↑", "MultiPL-E cpp pass@1 % ↑", "MultiPL-E lua pass@1 % ↑", "MultiPL-E go pass@1 % ↑",
        "MultiPL-E php pass@1 % ↑", "MultiPL-E, 4 languages pass@1 % ↑", "MultiPL-E, 2 of the paper's 6 pass@1 % ↑"]
    assert rows["MultiPL-E php pass@1 % ↑"] == ["skipped"] * 4
    assert [float(cell.split()[0]) for cell in rows["MultiPL-E js pass@1 % ↑"]] == [0, 25, 50, 75]
    assert rows["MultiPL-E, 4 languages pass@1 % ↑"] == ["4.5", "27.3", "40.9", "68.2"]  # of 22 problems
    assert rows["MultiPL-E, 2 of the paper's 6 pass@1 % ↑"] == ["0.0", "20.0", "30.0", "60.0"]  # of 10
    assert f"MultiPL-E php was skipped: {REASON}. It does not count as 0" in text
    assert "MultiPL-E, 2 of the paper's 6: js, cpp. The paper's 6 are cpp, php, rs, swift, js, java." in text
    metrics = result.manifest.metrics
    assert metrics["merged_multipl_e_pass_at_1"] == pytest.approx(15 / 22) and metrics["multipl_e_languages"] == 4
    assert metrics["sft_multipl_e_paper_pass_at_1"] == pytest.approx(2 / 10) and metrics["multipl_e_paper_languages"] == 2
    assert metrics["merged_plus_pass_at_1"] == 0.75  # the recipe's first benchmark
    assert metrics["merged_plus_pass_at_1_multipl_e_lua"] == 0.8
    assert not any("php" in name for name in metrics)
    comparison = comparison_of(output)
    assert comparison["skipped"] == {"MultiPL-E php": REASON}
    assert [average["languages"] for average in comparison["multilingual"]] == [["js", "cpp", "lua", "go"], ["js", "cpp"]]
    assert "MultiPL-E js+" not in text


@pytest.mark.slow
def test_plain_names_are_the_first_benchmarks_even_if_that_was_skipped(tmp_path: Path) -> None:
    made = artifacts(tmp_path)
    swapped = {
        role.replace("_0", "_x").replace("_4", "_0").replace("_x", "_4") if role.startswith("evaluate") else role: path
        for role, path in made.items()}
    benchmarks = [f"multipl-e/{language}" for language in ("php", "cpp", "lua", "go", "js")]
    result, _ = report(tmp_path, swapped, evaluate={"benchmarks": benchmarks})
    assert "merged_plus_pass_at_1" not in result.manifest.metrics
    assert result.manifest.metrics["merged_plus_pass_at_1_multipl_e_js"] == 0.75


def test_averages_are_over_languages_that_every_model_was_graded_in() -> None:
    found = averages({
        "sft": {"js": (10, 0.5), "cpp": (30, 0.1), "rs": (5, 1.0)}, "merged": {"js": (10, 0.6), "cpp": (30, 0.2)}, "base": {}})
    assert [(average.metric, average.languages) for average in found] == [
        ("multipl_e", ["js", "cpp"]), ("multipl_e_paper", ["js", "cpp"])]
    assert found[0].pass_at_1 == {"sft": pytest.approx(0.2), "merged": pytest.approx(0.3)}
    assert averages({"sft": {"js": (10, 0.5)}}) == [] == averages({})
    only = averages({"sft": {"js": (10, 0.5), "lua": (10, 0.7)}})
    assert [average.metric for average in only] == ["multipl_e"]


@pytest.mark.parametrize(("name", "title"), [
    ("multipl-e/js", "MultiPL-E js"), ("/data/multipl-e/humaneval-cpp.jsonl", "MultiPL-E cpp"),
    ("multipl-e/humaneval-go.jsonl.gz", "MultiPL-E go"), ("/data/humaneval-go.jsonl", "humaneval-go")])
def test_titles(name: str, title: str) -> None:
    assert benchmark_title(name) == title


@pytest.mark.slow
def test_of_two_benchmarks_of_one_language_the_first_counts(tmp_path: Path) -> None:
    found = artifacts(tmp_path)
    for place, model in enumerate(("base", "sft", "moe", "merged")):
        found[f"evaluate_{model}_5"] = make_artifact(tmp_path / f"again_{model}", "evaluate", *evaluation("js", 3 - place))
    once, _ = report(tmp_path, artifacts(tmp_path / "once"), "alone", evaluate={
        "benchmarks": [f"multipl-e/{language}" for language in LANGUAGES]})
    twice, _ = report(tmp_path, found, "twice", evaluate={
        "benchmarks": [*(f"multipl-e/{language}" for language in LANGUAGES), "own/humaneval-js.jsonl"]})
    averages = {name: value for name, value in once.manifest.metrics.items() if "multipl_e_" in name and "pass" in name}
    shown = {name: twice.manifest.metrics[name] for name in once.manifest.metrics if name in (
        "merged_multipl_e_pass_at_1", "base_multipl_e_pass_at_1", "merged_multipl_e_paper_pass_at_1")}
    assert len(shown) == 3 and shown.items() <= averages.items()
